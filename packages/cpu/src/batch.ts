import type { BatchCapacity, BatchStep, PagedBatch } from '@flashmla/spec'
import { DisposedError, InvalidArgumentError } from '@flashmla/spec'

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

/** @throws InvalidArgumentError naming the first entry that is inconsistent or past the capacity */
export function checkStep(step: BatchStep, capacity: BatchCapacity): void {
  const { queryStart, seqLens, blockTable, blockTableStride } = step
  const b = seqLens.length
  const refuse = (fact: string) =>
    new InvalidArgumentError(fact, 'Build the step from live sequences, within the capacity of the batch.')
  if (b > capacity.maxSequences) throw refuse(`${b} sequences are more than the batch's ${capacity.maxSequences}.`)
  if (queryStart.length !== b + 1) throw refuse(`queryStart has ${queryStart.length} entries for ${b} sequences.`)
  if (queryStart[0] !== 0) throw refuse(`queryStart begins with ${queryStart[0]}, not 0.`)
  if (blockTable.length < b * blockTableStride)
    throw refuse(`The block table holds ${blockTable.length} of ${b} × ${blockTableStride} entries.`)
  if (blockTableStride > capacity.maxBlocks)
    throw refuse(`A block table row of ${blockTableStride} is longer than the batch's ${capacity.maxBlocks}.`)
  for (let s = 0; s < b; s++) {
    if (queryStart[s + 1]! < queryStart[s]!)
      throw refuse(`queryStart falls from ${queryStart[s]} to ${queryStart[s + 1]} at sequence ${s}.`)
    if (seqLens[s]! < 0) throw refuse(`Sequence ${s} has the length ${seqLens[s]}.`)
  }
  if (queryStart[b]! > capacity.maxTokens)
    throw refuse(`${queryStart[b]} query rows are more than the batch's ${capacity.maxTokens}.`)
}
