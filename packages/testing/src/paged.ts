import type { BatchStep, CacheFormat, PagedBatch, PagedCache } from '@flashmla/spec'
import type { Random } from './random'
import type { Workspace } from './workspace'

/** A block id that no cache has: read, it leads out of memory. */
export const POISON_BLOCK = 0x7fffffff

/** A cache with NaN in every slot, and the rows that were appended since, as the format keeps them. */
export class PoisonedCache {
  readonly cache: PagedCache
  readonly rows = new Map<number, Float32Array>()
  readonly width: number

  constructor(
    readonly workspace: Workspace,
    readonly format: CacheFormat,
    readonly numBlocks: number,
    readonly pageSize: number,
  ) {
    this.width = format.kvLoraRank + format.ropeDim
    this.cache = workspace.cache(format, numBlocks, pageSize)
    const slots = Int32Array.from({ length: numBlocks * pageSize }, (_, i) => i)
    this.#append(slots, new Float32Array(slots.length * this.width).fill(Number.NaN))
  }

  /** Appends row n of `latent` to slots[n], and remembers what the format makes of it. */
  append(slots: ArrayLike<number>, latent: Float32Array): void {
    this.#append(Int32Array.from(slots), latent)
    const page = new Uint8Array(this.format.bytesPerToken)
    for (let n = 0; n < slots.length; n++) {
      if (slots[n]! < 0) continue
      const row = new Float32Array(this.width)
      this.format.encode(latent, n * this.width, page, 1, 0)
      this.format.decode(page, 1, 0, row, 0)
      this.rows.set(slots[n]!, row)
    }
  }

  /** Lays out sequences over random blocks of the cache, appends a random row a token, and poisons what is not theirs. */
  fill(random: Random, seqLens: readonly number[], queries: readonly number[]): BatchStep {
    const free = [...random.permutation(this.numBlocks)]
    const blocks = seqLens.map((length) => free.splice(0, Math.ceil(length / this.pageSize)))
    const step = stepOf(seqLens, queries, blocks)
    const slots = seqLens.flatMap((length, s) =>
      Array.from(
        { length },
        (_, t) => blocks[s]![Math.floor(t / this.pageSize)]! * this.pageSize + (t % this.pageSize),
      ),
    )
    if (slots.length > 0) this.append(slots, random.values(slots.length * this.width))
    return step
  }

  #append(slots: Int32Array, latent: Float32Array): void {
    const { workspace: w } = this
    const [rows, where] = [w.f32([slots.length, this.width], latent), w.i32([slots.length], slots)]
    w.backend.append(this.cache, rows, where)
  }
}

/** A step over the given blocks, its unused block table entries poisoned and one more than the longest sequence needs. */
export function stepOf(
  seqLens: readonly number[],
  queries: readonly number[],
  blocks: readonly (readonly number[])[],
): BatchStep {
  const stride = Math.max(...blocks.map((own) => own.length)) + 1
  const blockTable = new Int32Array(seqLens.length * stride).fill(POISON_BLOCK)
  blocks.forEach((own, s) => {
    blockTable.set(own, s * stride)
  })
  const queryStart = new Int32Array(seqLens.length + 1)
  queries.forEach((count, s) => {
    queryStart[s + 1] = queryStart[s]! + count
  })
  return { queryStart, seqLens: Int32Array.from(seqLens), blockTable, blockTableStride: stride }
}

/** A batch that holds `step`, with room to spare. */
export function batchOf(workspace: Workspace, step: BatchStep): PagedBatch {
  const batch = workspace.keep(
    workspace.backend.batch({
      maxSequences: step.seqLens.length + 3,
      maxTokens: step.queryStart.at(-1)! + 5,
      maxBlocks: step.blockTableStride + 2,
    }),
  )
  batch.update(step)
  return batch
}
