import type { PagedBatch, PagedCache } from '@flashmla/spec'
import { InvalidArgumentError } from '@flashmla/spec'
import type { CpuBatch } from './batch'
import type { CpuCache } from './cache'

/** Query rows of the batch's step. */
export function queryRows(batch: PagedBatch): number {
  return (batch as CpuBatch).step.queryStart.at(-1)!
}

/** Calls `visit` once a sequence with its decoded rows `[seqLen, width]`, its first query row and number of queries; every slot is checked first. */
export function forEachSequence(
  cache: PagedCache,
  batch: PagedBatch,
  visit: (rows: Float32Array, seqLen: number, start: number, queries: number) => void,
): void {
  const { queryStart: starts, seqLens: lengths, blockTable: table, blockTableStride: stride } = (batch as CpuBatch).step
  const width = cache.format.kvLoraRank + cache.format.ropeDim
  const { pageSize } = cache
  const slotOf = (s: number, t: number) => [table[s * stride + Math.floor(t / pageSize)]!, t % pageSize] as const
  for (let s = 0; s < lengths.length; s++) {
    if (Math.ceil(lengths[s]! / pageSize) > stride) {
      throw new InvalidArgumentError(
        `Sequence ${s} has ${lengths[s]} tokens, and its block table row ${stride} pages of ${pageSize}.`,
        'Give every page of the sequence a block table entry.',
      )
    }
    for (let t = 0; t < lengths[s]!; t++) (cache as CpuCache).checkWritten(...slotOf(s, t))
  }
  for (let s = 0; s < lengths.length; s++) {
    const seqLen = lengths[s]!
    const rows = new Float32Array(seqLen * width)
    for (let t = 0; t < seqLen; t++) (cache as CpuCache).read(...slotOf(s, t), rows, t * width)
    visit(rows, seqLen, starts[s]!, starts[s + 1]! - starts[s]!)
  }
}

/** In-place softmax of scores[0, n); returns the natural log of the sum, −Infinity for n = 0. */
export function softmaxInPlace(scores: Float64Array, n: number): number {
  let max = Number.NEGATIVE_INFINITY
  for (let t = 0; t < n; t++) max = Math.max(max, scores[t]!)
  if (n === 0) return max
  let sum = 0
  for (let t = 0; t < n; t++) sum += scores[t] = Math.exp(scores[t]! - max)
  for (let t = 0; t < n; t++) scores[t]! /= sum
  return max + Math.log(sum)
}
