import type { RopeConfig } from './config'

/**
 * Inverse frequencies `[dim / 2]`. Plain: theta^(−2j/dim) (RoFormer, arXiv 2104.09864). YaRN blends interpolated and
 * original frequencies by a ramp between the dimensions that make betaFast and betaSlow turns (arXiv 2309.00071, §3.2).
 */
export function ropeFrequencies(dim: number, rope: RopeConfig): Float64Array {
  const half = dim / 2
  const frequencies = Float64Array.from({ length: half }, (_, j) => rope.theta ** ((-2 * j) / dim))
  const yarn = rope.yarn
  if (!yarn) return frequencies
  const dimensionOf = (turns: number) =>
    (dim * Math.log(yarn.originalMaxPositions / (turns * 2 * Math.PI))) / (2 * Math.log(rope.theta))
  const low = Math.max(Math.floor(dimensionOf(yarn.betaFast)), 0)
  const high = Math.min(Math.ceil(dimensionOf(yarn.betaSlow)), dim - 1)
  const span = high === low ? 0.001 : high - low
  return frequencies.map((frequency, j) => {
    const ramp = Math.min(Math.max((j - low) / span, 0), 1)
    return (frequency / yarn.factor) * ramp + frequency * (1 - ramp)
  })
}

/** YaRN's magnitude correction: 0.1 · mscale · ln(factor) + 1. */
export function yarnMagnitude(factor: number, mscale: number): number {
  return factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1
}

/** Magnitude of the rotated part: YaRN's mscale over its mscale_all_dim, 1 without YaRN. */
export function ropeMagnitude(rope: RopeConfig): number {
  const yarn = rope.yarn
  if (!yarn) return 1
  if (yarn.attentionFactor !== undefined) return yarn.attentionFactor
  return yarn.mscale && yarn.mscaleAllDim
    ? yarnMagnitude(yarn.factor, yarn.mscale) / yarnMagnitude(yarn.factor, yarn.mscaleAllDim)
    : yarnMagnitude(yarn.factor, 1)
}

/** Rotary table `[positions, dim / 2, 2]` of (cos, sin), times `ropeMagnitude`. */
export function ropeTable(positions: number, dim: number, rope: RopeConfig): Float32Array {
  const frequencies = ropeFrequencies(dim, rope)
  const magnitude = ropeMagnitude(rope)
  const table = new Float32Array(positions * dim)
  for (let position = 0; position < positions; position++) {
    for (let j = 0; j < frequencies.length; j++) {
      const angle = position * frequencies[j]!
      table[position * dim + 2 * j] = Math.cos(angle) * magnitude
      table[position * dim + 2 * j + 1] = Math.sin(angle) * magnitude
    }
  }
  return table
}

/**
 * Rotates x[start, start + 2 · frequencies.length) in place to `position`: pairs (2j, 2j + 1) when interleaved,
 * (j, j + half) otherwise (decoupled RoPE, arXiv 2405.04434, §2.1.3). `magnitude` is `ropeMagnitude(rope)`.
 */
export function rotate(
  x: Float32Array,
  start: number,
  frequencies: ArrayLike<number>,
  position: number,
  interleaved: boolean,
  magnitude = 1,
): void {
  const half = frequencies.length
  for (let j = 0; j < half; j++) {
    const cos = Math.cos(position * frequencies[j]!) * magnitude
    const sin = Math.sin(position * frequencies[j]!) * magnitude
    const [a, b] = interleaved ? [start + 2 * j, start + 2 * j + 1] : [start + j, start + j + half]
    const [u, v] = [x[a]!, x[b]!]
    x[a] = u * cos - v * sin
    x[b] = v * cos + u * sin
  }
}

/** Softmax scale: 1/√(nope + rope), times the square of YaRN's mscale_all_dim magnitude. */
export function softmaxScale(config: { qkNopeHeadDim: number; qkRopeHeadDim: number; rope: RopeConfig }): number {
  const base = 1 / Math.sqrt(config.qkNopeHeadDim + config.qkRopeHeadDim)
  const yarn = config.rope.yarn
  return yarn?.mscaleAllDim ? base * yarnMagnitude(yarn.factor, yarn.mscaleAllDim) ** 2 : base
}
