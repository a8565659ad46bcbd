import type { BatchCapacity, BatchStep } from './backend'
import { InvalidArgumentError } from './errors'

/** @throws InvalidArgumentError naming the first entry that is inconsistent or past the capacity */
export function checkStep(step: BatchStep, capacity: BatchCapacity): void {
  const { queryStart, seqLens, blockTable, blockTableStride } = step
  const b = seqLens.length
  const refuse = (fact: string) =>
    new InvalidArgumentError(fact, 'Build the step from live sequences, within the capacity of the batch.')
  if (b > capacity.maxSequences) throw refuse(`${b} sequences are more than the batch's ${capacity.maxSequences}.`)
  if (queryStart.length !== b + 1) throw refuse(`queryStart has ${queryStart.length} entries for ${b} sequences.`)
  if (queryStart[0] !== 0) throw refuse(`queryStart begins with ${queryStart[0]}, not 0.`)
  if (!Number.isInteger(blockTableStride) || blockTableStride < 0)
    throw refuse(`blockTableStride is ${blockTableStride}.`)
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
