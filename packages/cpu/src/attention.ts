import type { Backend, PagedBatch, PagedCache } from '@flashmla/spec'
import { InvalidArgumentError } from '@flashmla/spec'
import type { CpuBatch } from './batch'
import type { CpuCache } from './cache'
import { dot, product } from './loops'
import { f32, w32 } from './memory'

/** Query rows of the batch's step. */
export function queryRows(batch: PagedBatch): number {
  return (batch as CpuBatch).step.queryStart.at(-1)!
}

/** Attention over the latents themselves: every head's key is a cached row, its value the row's compressed part. */
export const attend: Backend['attention'] = (out, lse, q, cache, batch, scale) => {
  const [o, sums, queriesOf] = [f32(out), f32(lse), f32(q)]
  const [, h, width] = q.shape as [number, number, number]
  const rank = cache.format.kvLoraRank
  forEachSequence(cache, batch, (rows, seqLen, start, queries) => {
    const scores = new Float64Array(seqLen)
    for (let i = 0; i < queries; i++) {
      const visible = Math.max(seqLen - queries + i + 1, 0)
      for (let head = 0; head < h; head++) {
        const row = (start + i) * h + head
        for (let t = 0; t < visible; t++) scores[t] = scale * dot(queriesOf, row * width, rows, t * width, width)
        sums[row] = softmaxInPlace(scores, visible)
        for (let c = 0; c < rank; c++) {
          let sum = 0
          for (let t = 0; t < visible; t++) sum += scores[t]! * rows[t * width + c]!
          o[row * rank + c] = sum
        }
      }
    }
  })
}

/** Attention over each head's own keys and values, which `kvB` makes of the latents. */
export const attendNaively: Backend['naiveAttention'] = (out, q, kvB, cache, batch, scale) => {
  const [o, queriesOf] = [f32(out), f32(q)]
  const [, h, qk] = q.shape as [number, number, number]
  const v = out.shape.at(-1)!
  const { kvLoraRank: rank, ropeDim } = cache.format
  const nope = qk - ropeDim
  const width = rank + ropeDim
  forEachSequence(cache, batch, (rows, seqLen, start, queries) => {
    const full = new Float32Array(seqLen * h * (nope + v))
    product(full, 0, h * (nope + v), rows, 0, width, w32(kvB), 0, h * (nope + v), rank, seqLen)
    const scores = new Float64Array(seqLen)
    for (let i = 0; i < queries; i++) {
      const visible = Math.max(seqLen - queries + i + 1, 0)
      for (let head = 0; head < h; head++) {
        const row = (start + i) * h + head
        for (let t = 0; t < visible; t++) {
          const key = (t * h + head) * (nope + v)
          scores[t] =
            scale *
            (dot(queriesOf, row * qk, full, key, nope) +
              dot(queriesOf, row * qk + nope, rows, t * width + rank, ropeDim))
        }
        softmaxInPlace(scores, visible)
        for (let c = 0; c < v; c++) {
          let sum = 0
          for (let t = 0; t < visible; t++) sum += scores[t]! * full[(t * h + head) * (nope + v) + nope + c]!
          o[row * v + c] = sum
        }
      }
    }
  })
}

/** Calls `visit` once a sequence with its decoded rows `[seqLen, width]`, its first query row and number of queries; every slot is checked first. */
function forEachSequence(
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
function softmaxInPlace(scores: Float64Array, n: number): number {
  let max = Number.NEGATIVE_INFINITY
  for (let t = 0; t < n; t++) max = Math.max(max, scores[t]!)
  if (n === 0) return max
  let sum = 0
  for (let t = 0; t < n; t++) sum += scores[t] = Math.exp(scores[t]! - max)
  for (let t = 0; t < n; t++) scores[t]! /= sum
  return max + Math.log(sum)
}
