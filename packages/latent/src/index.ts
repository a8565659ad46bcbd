/**
 * The mathematics of Multi-head Latent Attention: configuration, normalization, rotary embedding and YaRN, projections and their
 * absorption, merging of partial attentions, cache formats and what they hold.
 *
 * @example
 * import { bf16Format } from '@flashmla/latent'
 * const format = bf16Format(512, 64)
 * const page = new Uint8Array(64 * format.bytesPerToken)
 * format.encode(new Float32Array(576).fill(0.5), 0, page, 64, 3)
 */
export { absorbKvB } from './absorb'
export { bf16ToFloat, floatToBf16, halfToFloat } from './bf16'
export type { CapacityOptions, CapacityRow } from './capacity'
export { cacheCapacity, capacityTable, formatsFor } from './capacity'
export type { MlaConfig, RopeConfig } from './config'
export { parseMlaConfig } from './config'
export { decodeE4m3, E4M3_MAX, e4m3ToFloat, e8m0ToFloat, encodeE4m3, floatToE4m3, floatToE8m0 } from './float8'
export { bf16Format, decodeBf16, encodeBf16, f32Format } from './formats'
export { fp8V4Format, fp8V32Format } from './fp8-formats'
export type { PartialAttention } from './merge'
export { mergeAttention } from './merge'
export { rmsNorm } from './norm'
export { absorbQuery, downProject, expandOutput, project, upProject } from './project'
export { ropeFrequencies, ropeMagnitude, ropeTable, rotate, softmaxScale, yarnMagnitude } from './rope'
export { shiftSlots } from './shift'
