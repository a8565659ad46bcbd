import type { BatchStep } from '@flashmla/spec'

/** The rows of a cache as the format keeps them, by slot = block · pageSize + offset. */
export type CacheRows = ReadonlyMap<number, Float32Array>

export interface AttentionProblem {
  readonly rows: CacheRows
  readonly pageSize: number
  readonly step: BatchStep
  readonly q: Float32Array
  readonly heads: number
  readonly scale: number
}

/**
 * Attention in float64 over whatever keys and values `expand` makes of a cached row for a head:
 * out `[t, h, v]` and lse `[t, h]`. A query that sees nothing: 0 and −Infinity.
 */
export function attention(
  { rows, pageSize, step, q, heads, scale }: AttentionProblem,
  v: number,
  expand: (row: Float32Array, head: number) => { key: ArrayLike<number>; value: ArrayLike<number> },
): { out: Float64Array; lse: Float64Array } {
  const t = step.queryStart.at(-1)!
  const d = q.length / (t * heads)
  const out = new Float64Array(t * heads * v)
  const lse = new Float64Array(t * heads).fill(Number.NEGATIVE_INFINITY)
  step.seqLens.forEach((seqLen, s) => {
    const tokens = Array.from({ length: seqLen }, (_, position) => {
      const block = step.blockTable[s * step.blockTableStride + Math.floor(position / pageSize)]!
      return rows.get(block * pageSize + (position % pageSize))!
    })
    for (let head = 0; head < heads; head++) {
      const expanded = tokens.map((row) => expand(row, head))
      const [first, end] = [step.queryStart[s]!, step.queryStart[s + 1]!]
      for (let query = first; query < end; query++) {
        const visible = expanded.slice(0, Math.max(seqLen - (end - query) + 1, 0))
        if (visible.length === 0) continue
        const at = query * heads + head
        const scores = visible.map(({ key }) => {
          let score = 0
          for (let i = 0; i < d; i++) score += q[at * d + i]! * key[i]!
          return score * scale
        })
        const max = scores.reduce((a, b) => Math.max(a, b))
        const sum = scores.reduce((total, score) => total + Math.exp(score - max), 0)
        lse[at] = max + Math.log(sum)
        visible.forEach(({ value }, token) => {
          const p = Math.exp(scores[token]! - max) / sum
          for (let c = 0; c < v; c++) out[at * v + c]! += p * value[c]!
        })
      }
    }
  })
  return { out, lse }
}

/** Absorbed: every head's key is the whole cached row, its value the row's latent part. */
export function absorbedAttention(problem: AttentionProblem, kvLoraRank: number) {
  return attention(problem, kvLoraRank, (row) => ({ key: row, value: row }))
}

/** Naive: keys and values of a head are rebuilt by kvB `[h · (nope + v), kvLoraRank]`; the rotary part is shared. */
export function naiveAttention(
  problem: AttentionProblem,
  kvB: ArrayLike<number>,
  kvLoraRank: number,
  nope: number,
  v: number,
) {
  return attention(problem, v, (row, head) => {
    const full = new Float64Array(nope + v)
    for (let i = 0; i < nope + v; i++) {
      for (let r = 0; r < kvLoraRank; r++) full[i]! += kvB[(head * (nope + v) + i) * kvLoraRank + r]! * row[r]!
    }
    return { key: [...full.subarray(0, nope), ...row.subarray(kvLoraRank)], value: full.subarray(nope) }
  })
}
