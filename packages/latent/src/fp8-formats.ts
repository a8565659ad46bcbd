import type { CacheFormat } from '@flashmla/spec'
import { decodeE4m3, E4M3_MAX, e8m0ToFloat, encodeE4m3, floatToE8m0 } from './float8'
import { checkedFormat } from './format-checks'
import { decodeBf16, encodeBf16 } from './formats'

/** Smallest scale: below an absolute maximum of 448 · 1e-4 a tile keeps 2^−13, the first power of two ≥ 1e-4. */
const MIN_SCALE_E8M0 = 127 - 13

/**
 * `fp8-656` of DeepSeek V3.2, one contiguous row a token: 512 e4m3 latent values, 4 little-endian float32 scales (one
 * per 128 values), 64 bf16 rotary values. Layout and scale rule as in FlashMLA's tests/quant.py (V32_FP8Sparse): a tile's
 * scale is the power of two next above max|x| / 448, at least 2^−13, and value = e4m3 · scale.
 */
export const fp8V32Format: CacheFormat = checkedFormat({
  name: 'fp8-656',
  kvLoraRank: 512,
  ropeDim: 64,
  bytesPerToken: 656,
  byteRanges: (_pageSize, slot) => [{ offset: slot * 656, length: 656 }],
  encode(source, sourceOffset, page, _pageSize, slot) {
    const row = slot * 656
    for (let tile = 0; tile < 4; tile++) {
      const scale = encodeTile(source, sourceOffset + tile * 128, 128, page, row + tile * 128)
      // The float32 of a power of two has its e8m0 byte as exponent and nothing else.
      page[row + 512 + tile * 4] = 0
      page[row + 513 + tile * 4] = 0
      page[row + 514 + tile * 4] = (scale & 1) << 7
      page[row + 515 + tile * 4] = scale >>> 1
    }
    encodeBf16(source, sourceOffset + 512, 64, page, row + 528)
  },
  decode(page, _pageSize, slot, target, targetOffset) {
    const row = slot * 656
    const scales = new DataView(page.buffer, page.byteOffset + row + 512, 16)
    for (let tile = 0; tile < 4; tile++) {
      decodeE4m3(page, row + tile * 128, 128, scales.getFloat32(tile * 4, true), target, targetOffset + tile * 128)
    }
    decodeBf16(page, row + 528, 64, target, targetOffset + 512)
  },
})

/**
 * `fp8-584` of DeepSeek V4. A page holds its token rows first, 448 e4m3 + 64 bf16 (576 bytes each), then its scale rows,
 * 7 e8m0 (one per 64 values) + 1 byte of padding each. Layout and scale rule as in FlashMLA's tests/quant.py
 * (MODEL1_FP8Sparse), where the page as a whole may be padded to a multiple of 576 bytes; this page is not.
 */
export const fp8V4Format: CacheFormat = checkedFormat({
  name: 'fp8-584',
  kvLoraRank: 448,
  ropeDim: 64,
  bytesPerToken: 584,
  byteRanges: (pageSize, slot) => [
    { offset: slot * 576, length: 576 },
    { offset: pageSize * 576 + slot * 8, length: 8 },
  ],
  encode(source, sourceOffset, page, pageSize, slot) {
    const row = slot * 576
    const scales = pageSize * 576 + slot * 8
    for (let tile = 0; tile < 7; tile++) {
      page[scales + tile] = encodeTile(source, sourceOffset + tile * 64, 64, page, row + tile * 64)
    }
    page[scales + 7] = 0
    encodeBf16(source, sourceOffset + 448, 64, page, row + 448)
  },
  decode(page, pageSize, slot, target, targetOffset) {
    const row = slot * 576
    const scales = pageSize * 576 + slot * 8
    for (let tile = 0; tile < 7; tile++) {
      decodeE4m3(page, row + tile * 64, 64, e8m0ToFloat(page[scales + tile]!), target, targetOffset + tile * 64)
    }
    decodeBf16(page, row + 448, 64, target, targetOffset + 448)
  },
})

/**
 * Writes `n` values as e4m3 and returns their scale's e8m0 byte. NaN stays NaN and has no say in the scale;
 * an infinity takes the largest scale, so that it is read back as an infinity.
 */
function encodeTile(source: Float32Array, start: number, n: number, page: Uint8Array, offset: number): number {
  let max = 0
  for (let i = 0; i < n; i++) {
    const magnitude = Math.abs(source[start + i]!)
    if (magnitude > max) max = magnitude
  }
  const scale = Math.max(floatToE8m0(max / E4M3_MAX), MIN_SCALE_E8M0)
  const inverse = 2 ** (127 - scale)
  encodeE4m3(source, start, n, inverse, page, offset)
  return scale
}
