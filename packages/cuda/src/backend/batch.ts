import type { BatchCapacity, BatchStep, PagedBatch } from '@flashmla/spec'
import { checkStep, DisposedError, InvalidArgumentError } from '@flashmla/spec'
import { upload } from '../driver/copy'
import type { DeviceMemory } from '../driver/memory'
import type { CudaCache } from './cache'
import type { BackendDevice } from './device'

/** 1 GiB of block ids. */
const MOST_ENTRIES = 2 ** 28

/** Host values and their copy on the device: only the stretch that changed is uploaded. */
class Mirror {
  readonly memory: DeviceMemory
  readonly #host: Int32Array
  #low = 0
  #high: number

  constructor(
    private readonly device: BackendDevice,
    size: number,
  ) {
    this.#host = new Int32Array(Math.max(size, 1))
    this.memory = device.allocate(this.#host.byteLength)
    this.#high = this.#host.length
    this.flush()
  }

  /** Takes `source` over from element `at` on. */
  set(source: Int32Array, at: number): void {
    for (let i = 0; i < source.length; i++) this.#put(at + i, source[i]!)
  }

  /** Sets every element from `start` on. */
  fill(value: number, start: number): void {
    for (let i = start; i < this.#host.length; i++) this.#put(i, value)
  }

  #put(at: number, value: number): void {
    if (this.#host[at] === value) return
    this.#host[at] = value
    this.#low = Math.min(this.#low, at)
    this.#high = Math.max(this.#high, at + 1)
  }

  get(at: number): number {
    return this.#host[at]!
  }

  flush(): void {
    if (this.#high > this.#low)
      upload(this.device.stream, this.memory, this.#host.subarray(this.#low, this.#high), this.#low * 4)
    this.#low = this.#host.length
    this.#high = 0
  }
}

/** What a captured step was planned for: later updates are held to it. */
interface Planned {
  readonly cache: CudaCache
  /** Most query rows of a sequence, and of all. */
  readonly queries: number
  readonly rows: number
}

/** A step in device memory, sized once. Sequences past the step's are empty, so that a captured step follows an update. */
export class CudaBatch implements PagedBatch {
  readonly #queryStart: Mirror
  readonly #seqLens: Mirror
  readonly #blockTable: Mirror
  /** Sequences of the step; −1 before the first. */
  #b = -1
  #stride = 0
  #longest = 0
  #tokens = 0
  #mostQueries = 0
  readonly #planned = new Set<Planned>()
  /** Caches that the step was checked against. */
  #fits = new WeakSet<CudaCache>()
  #disposed = false

  /** @throws InvalidArgumentError for a capacity that is off, CudaError when there is too little memory */
  constructor(
    readonly device: BackendDevice,
    readonly capacity: BatchCapacity,
  ) {
    const { maxSequences, maxTokens, maxBlocks } = capacity
    for (const [name, value] of Object.entries({ maxSequences, maxTokens, maxBlocks })) {
      if (Number.isInteger(value) && value >= 1 && value < 2 ** 31) continue
      throw new InvalidArgumentError(`${name} is ${value}.`, 'Give a whole number ≥ 1.')
    }
    if (maxSequences * maxBlocks > MOST_ENTRIES)
      throw new InvalidArgumentError(
        `A block table of ${maxSequences} by ${maxBlocks} entries is too large.`,
        `Give at most ${MOST_ENTRIES} entries: maxBlocks is the pages of the longest sequence.`,
      )
    const made: Mirror[] = []
    const mirror = (size: number) => {
      const one = new Mirror(device, size)
      made.push(one)
      return one
    }
    try {
      this.#queryStart = mirror(maxSequences + 1)
      this.#seqLens = mirror(maxSequences)
      this.#blockTable = mirror(maxSequences * maxBlocks)
    } catch (error) {
      for (const { memory } of made) device.free(memory)
      throw error
    }
  }

  /** `[maxSequences + 1]`, `[maxSequences]` and `[maxSequences, maxBlocks]` int32. @throws DisposedError, InvalidArgumentError before the first step */
  get tables(): { queryStart: DeviceMemory; seqLens: DeviceMemory; blockTable: DeviceMemory } {
    this.#check()
    return {
      queryStart: this.#queryStart.memory,
      seqLens: this.#seqLens.memory,
      blockTable: this.#blockTable.memory,
    }
  }

  /** Query rows of the step. */
  get rows(): number {
    this.#check()
    return this.#queryStart.get(this.#b)
  }

  get sequences(): number {
    return this.#b
  }

  /** Tokens of the longest sequence. */
  get longest(): number {
    return this.#longest
  }

  /** Tokens of all sequences. */
  get tokens(): number {
    return this.#tokens
  }

  /** Query rows of the sequence that has most. */
  get mostQueries(): number {
    return this.#mostQueries
  }

  queryStart(s: number): number {
    return this.#queryStart.get(s)
  }

  seqLen(s: number): number {
    return this.#seqLens.get(s)
  }

  update(step: BatchStep): void {
    if (this.#disposed) throw new DisposedError('A batch')
    this.device.eager('A batch update')
    checkStep(step, this.capacity)
    const { queryStart, seqLens, blockTable, blockTableStride: stride } = step
    const b = seqLens.length
    let [longest, tokens, mostQueries] = [0, 0, 0]
    for (let s = 0; s < b; s++) {
      tokens += seqLens[s]!
      longest = Math.max(longest, seqLens[s]!)
      mostQueries = Math.max(mostQueries, queryStart[s + 1]! - queryStart[s]!)
    }
    let checked: CudaCache | undefined
    for (const { cache, queries, rows } of this.#planned) {
      if (checked?.numBlocks !== cache.numBlocks || checked.pageSize !== cache.pageSize)
        checkPages(cache, b, stride, { seqLen: (s) => seqLens[s]!, block: (s, k) => blockTable[s * stride + k]! })
      checked = cache // the caches of a model's layers are alike
      if (mostQueries <= queries && queryStart[b]! <= rows) continue
      const [what, has, most] =
        mostQueries > queries ? ['A sequence', mostQueries, queries] : ['The step', queryStart[b], rows]
      throw new InvalidArgumentError(
        `${what} has ${has} query rows; the captured step was planned for ${most} at most.`,
        'Capture a step with that many rows, in a batch of its own, or dispose of the captured one first.',
      )
    }
    this.#queryStart.set(queryStart, 0)
    this.#queryStart.fill(queryStart[b]!, b + 1)
    this.#seqLens.set(seqLens, 0)
    this.#seqLens.fill(0, b)
    for (let s = 0; s < b; s++)
      this.#blockTable.set(blockTable.subarray(s * stride, (s + 1) * stride), s * this.capacity.maxBlocks)
    for (const mirror of [this.#queryStart, this.#seqLens, this.#blockTable]) mirror.flush()
    this.#b = b
    this.#stride = stride
    this.#longest = longest
    this.#tokens = tokens
    this.#mostQueries = mostQueries
    this.#fits = new WeakSet()
  }

  /** @throws InvalidArgumentError when the step's used pages are not all in `cache` */
  fit(cache: CudaCache): void {
    this.#check()
    if (this.#fits.has(cache)) return
    checkPages(cache, this.#b, this.#stride, {
      seqLen: (s) => this.seqLen(s),
      block: (s, k) => this.#blockTable.get(s * this.capacity.maxBlocks + k),
    })
    this.#fits.add(cache)
  }

  /** Holds later updates to what a captured step was planned for, until the returned function is called. */
  hold(planned: Planned): () => void {
    this.#planned.add(planned)
    return () => this.#planned.delete(planned)
  }

  /** One sequence's row of the block table. */
  blocksOf(s: number): bigint {
    return this.#blockTable.memory.address + BigInt(s * this.capacity.maxBlocks * 4)
  }

  dispose(): void {
    if (this.#disposed) return
    for (const { memory } of [this.#queryStart, this.#seqLens, this.#blockTable]) this.device.free(memory)
    this.#disposed = true
  }

  #check(): void {
    if (this.#disposed || this.#queryStart.memory.disposed) throw new DisposedError('A batch')
    if (this.#b < 0) throw new InvalidArgumentError('The batch holds no step yet.', 'Call update() before attending.')
  }
}

/** @throws InvalidArgumentError when the used pages of `b` sequences are not all in `cache` */
function checkPages(
  cache: CudaCache,
  b: number,
  stride: number,
  step: { seqLen(s: number): number; block(s: number, k: number): number },
): void {
  for (let s = 0; s < b; s++) {
    const pages = Math.ceil(step.seqLen(s) / cache.pageSize)
    if (pages > stride)
      throw new InvalidArgumentError(
        `Sequence ${s} of ${step.seqLen(s)} tokens has ${stride} block table entries for ${pages} pages.`,
        'Build the step with the pages of the cache that it reads.',
      )
    for (let k = 0; k < pages; k++) {
      const block = step.block(s, k)
      if (block < 0 || block >= cache.numBlocks)
        throw new InvalidArgumentError(
          `Sequence ${s} names page ${block} of a cache of ${cache.numBlocks}.`,
          'Take block ids from the pool that belongs to the cache.',
        )
    }
  }
}

/** The backend's own batch behind the interface. @throws InvalidArgumentError for another backend's */
export function ownBatch(device: BackendDevice, batch: PagedBatch): CudaBatch {
  device.alive()
  if (batch instanceof CudaBatch && batch.device === device) return batch
  throw new InvalidArgumentError(
    `A batch of ${batch.capacity.maxSequences} sequences belongs to another backend.`,
    'Make the batch of an attention with the backend that runs it.',
  )
}
