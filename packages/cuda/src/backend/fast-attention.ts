import { cast } from '../decode/append'
import { type DecodePlan, decode, planDecode } from '../decode/decode'
import { scheduleWith } from '../decode/schedule'
import { type DecodeShape, QK_WIDTH, VALUE_WIDTH } from '../decode/shape'
import { DeviceMemory } from '../driver/memory'
import type { AttentionOperands } from './attention'
import type { CudaBatch } from './batch'
import type { BackendDevice } from './device'
import type { CudaTensor } from './tensor'

/** Plans kept: each has work memory of its own. */
const MOST_PLANS = 6

interface Planned {
  readonly plan: DecodePlan
  /** No other plan's: one made later for the same shape has other work memory. */
  readonly id: number
  captured: boolean
}

/** Attention by the decode kernels, with queries and probabilities in bf16: 1e-3 instead of 1e-5, many times as fast. */
export class FastAttention {
  /** The plan used last stands last. */
  readonly #plans = new Map<string, Planned>()
  #last: { readonly shape: DecodeShape; readonly planned: Planned } | undefined
  #made = 0

  constructor(private readonly device: BackendDevice) {}

  /** Whether the decode kernels take this: a cache of bf16 rows of 512 + 64, queries and results from multiples of 16 bytes on. */
  static takes({ cache: { rowFormat, format }, q, out }: AttentionOperands): boolean {
    const read = rowFormat === 'bf16' && format.kvLoraRank === VALUE_WIDTH && format.ropeDim === QK_WIDTH - VALUE_WIDTH
    return read && q.byteOffset % 16 === 0 && out.byteOffset % 16 === 0
  }

  run({ out, lse, q, cache, batch, scale }: AttentionOperands): void {
    const { device } = this
    const [t, h] = q.shape as [number, number, number]
    const { queryStart, seqLens, blockTable } = batch.tables
    const rows = device.mode === 'run' ? batch.rows : t
    const sQ = batch.mostQueries
    const totalQueries = Math.min(rows, batch.capacity.maxSequences * sQ)
    // As many rows of each sequence, as most steps have: such a plan's decode may start before what comes before it has ended. A captured step
    // follows any update.
    const even = device.mode === 'run' && rows === batch.sequences * sQ
    if (device.mode === 'capture') device.capturing.push(batch.hold({ cache, queries: sQ, rows: totalQueries }))
    const addresses = [q.address, out.address, lse.address, cache.memory.address]
    if (totalQueries === 0 || h === 0) return
    const { plan, id } = this.#plan(shapeOf(even, batch, h, cache.pageSize, totalQueries))
    const n = totalQueries * h * QK_WIDTH
    const target = device.workspace('queries in bf16', n * 2)
    const [numBlocks, blockTableStride] = [cache.numBlocks, batch.capacity.maxBlocks]
    const tables = [target.address, blockTable.address, seqLens.address, queryStart.address]
    // May run when the tensors, as views, are gone, but not their memory.
    const [queries, values, sums] = [placeOf(q), placeOf(out), placeOf(lse)]
    device.runKeyed([id, scale, n, numBlocks, blockTableStride, ...addresses, ...tables], () => {
      cast(device.library, device.stream, { source: memoryAt(device, queries), target, n, dtype: 'bf16' })
      const given = { q: target, kv: cache.memory, numBlocks, blockTable, blockTableStride, seqLens, scale }
      const results = { out: memoryAt(device, values), lse: memoryAt(device, sums) }
      decode(plan, even ? { ...given, ...results } : { ...given, ...results, queryStart })
    })
  }

  #plan(shape: DecodeShape): Planned {
    // The layers of a step ask for the same.
    if (!this.#last || !isSame(this.#last.shape, shape)) this.#last = { shape, planned: this.#planOf(shape) }
    const { planned } = this.#last
    if (this.device.mode === 'capture') planned.captured = true
    return planned
  }

  #planOf(shape: DecodeShape): Planned {
    const { device } = this
    // All that the expected lengths decide.
    const { symbol } = scheduleWith(device.library, shape)
    const key = [shape.batch, shape.sQ, shape.hQ, shape.totalQueries, shape.pageSize, symbol].join(' ')
    let found = this.#plans.get(key)
    this.#plans.delete(key)
    if (!found) {
      // A capture's first pass makes the plans that its second records: none may go in between.
      device.mayAllocate()
      if (device.mode === 'run') this.#dropOldest()
      device.library.kernel('mla_cast') // a recording must not load it
      found = { plan: device.own(planDecode(device.library, device.stream, shape)), id: ++this.#made, captured: false }
    }
    this.#plans.set(key, found)
    return found
  }

  #dropOldest(): void {
    for (const [key, { plan, captured }] of this.#plans) {
      if (this.#plans.size < MOST_PLANS) return
      this.#plans.delete(key)
      // A captured step goes on using its plan's work memory.
      if (!captured) this.device.free(plan)
    }
  }
}

/** `even`: as many rows of each sequence. */
function shapeOf(even: boolean, batch: CudaBatch, hQ: number, pageSize: number, totalQueries: number): DecodeShape {
  const { mostQueries: sQ, sequences, tokens, longest, capacity } = batch
  return even
    ? {
        dtype: 'bf16',
        outDtype: 'f32',
        batch: sequences,
        sQ,
        hQ,
        pageSize,
        expectedTokens: tokens,
        expectedLongest: longest,
      }
    : { dtype: 'bf16', outDtype: 'f32', batch: capacity.maxSequences, sQ, hQ, pageSize, totalQueries }
}

function isSame(a: DecodeShape, b: DecodeShape): boolean {
  const alike = a.batch === b.batch && a.sQ === b.sQ && a.hQ === b.hQ && a.pageSize === b.pageSize
  const expected = a.expectedTokens === b.expectedTokens && a.expectedLongest === b.expectedLongest
  return alike && expected && a.totalQueries === b.totalQueries
}

interface Place {
  readonly memory: DeviceMemory
  readonly byteOffset: number
  readonly bytes: number
}

const placeOf = ({ memory, byteOffset, bytes }: CudaTensor): Place => ({ memory, byteOffset, bytes })

/** A tensor's part of its memory, as the decode kernels' binding takes it. @throws DisposedError */
function memoryAt({ stream }: BackendDevice, { memory, byteOffset, bytes }: Place): DeviceMemory {
  if (byteOffset === 0 || bytes === 0) return memory
  return new DeviceMemory(stream, bytes, { of: memory, offset: byteOffset })
}
