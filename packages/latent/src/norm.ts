import { InvalidArgumentError } from '@flashmla/spec'

/**
 * x[n] / sqrt(mean(x[n]²) + eps) · weight over rows `[n, d]`, d = weight.length (arXiv 1910.07467), float64 inside.
 * @throws InvalidArgumentError when x isn't whole rows
 */
export function rmsNorm(x: Float32Array, weight: Float32Array, eps: number): Float32Array {
  const d = weight.length
  if (d === 0 || x.length % d !== 0) {
    throw new InvalidArgumentError(
      `${x.length} values are not rows of ${d}.`,
      'Give whole rows, as wide as the weight is long.',
    )
  }
  const out = new Float32Array(x.length)
  for (let row = 0; row < x.length; row += d) {
    let squares = 0
    for (let i = 0; i < d; i++) squares += x[row + i]! ** 2
    const scale = 1 / Math.sqrt(squares / d + eps)
    for (let i = 0; i < d; i++) out[row + i] = x[row + i]! * scale * weight[i]!
  }
  return out
}
