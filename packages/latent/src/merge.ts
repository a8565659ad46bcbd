import { InvalidArgumentError } from '@flashmla/spec'

/** Attention of some queries over some of the tokens: out `[rows, d]`, lse `[rows]` natural log. */
export interface PartialAttention {
  readonly out: Float32Array
  readonly lse: Float32Array
}

/**
 * Attention over all tokens from attention over disjoint parts of them: lse = ln Σ exp(lse_p), out = Σ exp(lse_p − lse) ·
 * out_p (Flash-Decoding). Rows that no part attends to give 0 and −Infinity.
 * @throws InvalidArgumentError when there is no part, or the parts differ in shape
 */
export function mergeAttention(parts: readonly PartialAttention[]): PartialAttention {
  const first = parts[0]
  if (!first) throw new InvalidArgumentError('No partial attention was given.', 'Give at least one part.')
  const rows = first.lse.length
  for (const { out, lse } of parts) {
    if (lse.length !== rows || out.length !== first.out.length || (rows > 0 && out.length % rows !== 0)) {
      throw new InvalidArgumentError(
        `A part of ${out.length} values and ${lse.length} rows doesn't fit one of ${first.out.length} and ${rows}.`,
        'Give parts of the same queries: out [rows, d], lse [rows].',
      )
    }
  }
  const d = rows === 0 ? 0 : first.out.length / rows
  const out = new Float32Array(first.out.length)
  const lse = new Float32Array(rows)
  for (let row = 0; row < rows; row++) {
    const max = parts.reduce((most, part) => Math.max(most, part.lse[row]!), Number.NEGATIVE_INFINITY)
    lse[row] = max
    if (max === Number.NEGATIVE_INFINITY) continue
    const weights = parts.map((part) => Math.exp(part.lse[row]! - max))
    const sum = weights.reduce((a, b) => a + b, 0)
    lse[row] = max + Math.log(sum)
    for (let c = 0; c < d; c++) {
      let value = 0
      // A part without tokens has weight 0, and is not read.
      parts.forEach((part, p) => {
        if (weights[p] !== 0) value += (weights[p]! / sum) * part.out[row * d + c]!
      })
      out[row * d + c] = value
    }
  }
  return { out, lse }
}
