import type { BatchCapacity, BatchStep, PagedBatch } from '@flashmla/spec'
import { checkStep, DisposedError, InvalidArgumentError } from '@flashmla/spec'
import type { FastCache } from './cache'
import type { ThreadPool } from './pool'

/** A step in shared memory, sized once. */
export class FastBatch implements PagedBatch {
  readonly starts: number
  readonly lengths: number
  readonly table: number
  /** Sequences of the step; −1 before the first. */
  #b = -1
  #stride = 0
  #disposed = false

  constructor(
    readonly pool: ThreadPool,
    readonly capacity: BatchCapacity,
  ) {
    const { maxSequences, maxBlocks } = capacity
    this.starts = pool.heap.allocate((maxSequences + 1) * 4)
    this.lengths = pool.heap.allocate(maxSequences * 4)
    this.table = pool.heap.allocate(maxSequences * maxBlocks * 4)
  }

  get b(): number {
    this.#check()
    return this.#b
  }

  /** Query rows of the step. */
  get rows(): number {
    this.#check()
    return this.queryStart(this.#b)
  }

  get stride(): number {
    return this.#stride
  }

  update(step: BatchStep): void {
    if (this.#disposed) throw new DisposedError('A batch')
    checkStep(step, this.capacity)
    // Recorded operations see the step that was current when they were recorded.
    this.pool.flush()
    const { i32 } = this.pool.heap
    i32.set(step.queryStart, this.starts / 4)
    i32.set(step.seqLens, this.lengths / 4)
    const used = step.seqLens.length * step.blockTableStride
    for (let k = 0; k < used; k++) i32[this.table / 4 + k] = step.blockTable[k]!
    this.#b = step.seqLens.length
    this.#stride = step.blockTableStride
    this.pool.open()
  }

  queryStart(s: number): number {
    return this.pool.heap.i32[this.starts / 4 + s]!
  }

  seqLen(s: number): number {
    return this.pool.heap.i32[this.lengths / 4 + s]!
  }

  /** @throws InvalidArgumentError when the step's used pages are not all in `cache` */
  fit(cache: FastCache): void {
    this.#check()
    const { i32 } = this.pool.heap
    for (let s = 0; s < this.#b; s++) {
      const pages = Math.ceil(this.seqLen(s) / cache.pageSize)
      if (pages > this.#stride)
        throw new InvalidArgumentError(
          `Sequence ${s} of ${this.seqLen(s)} tokens has ${this.#stride} block table entries for ${pages} pages.`,
          'Build the step with the pages of the cache that it reads.',
        )
      for (let k = 0; k < pages; k++) {
        const block = i32[this.table / 4 + s * this.#stride + k]!
        if (block < 0 || block >= cache.numBlocks)
          throw new InvalidArgumentError(
            `Sequence ${s} names page ${block} of a cache of ${cache.numBlocks}.`,
            'Take block ids from the pool that belongs to the cache.',
          )
      }
    }
  }

  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    const { heap } = this.pool
    heap.retire(this.starts, (this.capacity.maxSequences + 1) * 4)
    heap.retire(this.lengths, this.capacity.maxSequences * 4)
    heap.retire(this.table, this.capacity.maxSequences * this.capacity.maxBlocks * 4)
  }

  #check(): void {
    if (this.#disposed) throw new DisposedError('A batch')
    if (this.#b < 0) throw new InvalidArgumentError('The batch holds no step yet.', 'Call update() before attending.')
  }
}
