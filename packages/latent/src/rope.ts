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

/** Rotary table `[positions, dim / 2, 2]` of (cos, sin), times YaRN's mscale ratio. */
export function ropeTable(positions: number, dim: number, rope: RopeConfig): Float32Array {
  const frequencies = ropeFrequencies(dim, rope)
  const yarn = rope.yarn
  const magnitude = !yarn
    ? 1
    : yarn.mscale && yarn.mscaleAllDim
      ? yarnMagnitude(yarn.factor, yarn.mscale) / yarnMagnitude(yarn.factor, yarn.mscaleAllDim)
      : yarnMagnitude(yarn.factor, 1)
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

/** Softmax scale: 1/√(nope + rope), times the square of YaRN's mscale_all_dim magnitude. */
export function softmaxScale(config: { qkNopeHeadDim: number; qkRopeHeadDim: number; rope: RopeConfig }): number {
  const base = 1 / Math.sqrt(config.qkNopeHeadDim + config.qkRopeHeadDim)
  const yarn = config.rope.yarn
  return yarn?.mscaleAllDim ? base * yarnMagnitude(yarn.factor, yarn.mscaleAllDim) ** 2 : base
}
