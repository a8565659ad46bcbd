import type { BatchCapacity, BatchStep, PagedBatch } from '@flashmla/spec'
import { checkStep, DisposedError, InvalidArgumentError } from '@flashmla/spec'

/** A step's host arrays, checked and copied, so that the caller may change its own. */
export class CpuBatch implements PagedBatch {
  #step: BatchStep | undefined
  #disposed = false

  constructor(readonly capacity: BatchCapacity) {}

  get step(): BatchStep {
    if (this.#disposed) throw new DisposedError('A batch')
    if (!this.#step) throw new InvalidArgumentError('The batch holds no step yet.', 'Call update() before attending.')
    return this.#step
  }

  update(step: BatchStep): void {
    if (this.#disposed) throw new DisposedError('A batch')
    checkStep(step, this.capacity)
    this.#step = {
      queryStart: step.queryStart.slice(),
      seqLens: step.seqLens.slice(),
      blockTable: step.blockTable.slice(),
      blockTableStride: step.blockTableStride,
    }
  }

  dispose(): void {
    this.#disposed = true
    this.#step = undefined
  }
}
