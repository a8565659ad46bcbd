/**
 * The mathematics of Multi-head Latent Attention: configuration, rotary tables, weight absorption, cache formats.
 *
 * @example
 * import { bf16Format } from '@flashmla/latent'
 * const format = bf16Format(512, 64)
 * const page = new Uint8Array(64 * format.bytesPerToken)
 * format.encode(new Float32Array(576).fill(0.5), 0, page, 64, 3)
 */
export { absorbKvB } from './absorb'
export { bf16ToFloat, floatToBf16, halfToFloat } from './bf16'
export type { MlaConfig, RopeConfig } from './config'
export { parseMlaConfig } from './config'
export { decodeE4m3, E4M3_MAX, e4m3ToFloat, e8m0ToFloat, encodeE4m3, floatToE4m3, floatToE8m0 } from './float8'
export { bf16Format, decodeBf16, encodeBf16, f32Format } from './formats'
export { fp8V4Format, fp8V32Format } from './fp8-formats'
export { ropeFrequencies, ropeTable, softmaxScale, yarnMagnitude } from './rope'
