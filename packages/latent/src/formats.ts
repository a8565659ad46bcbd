import type { CacheFormat } from '@flashmla/spec'
import { InvalidArgumentError } from '@flashmla/spec'
import { bf16ToFloat, floatToBf16 } from './bf16'
import { checkedFormat } from './format-checks'

/** Float32 rows of any width: the reference's own format. */
export function f32Format(kvLoraRank: number, ropeDim: number): CacheFormat {
  const width = rowWidth(kvLoraRank, ropeDim)
  const view = (page: Uint8Array, slot: number) =>
    new DataView(page.buffer, page.byteOffset + slot * width * 4, width * 4)
  return checkedFormat({
    name: `f32-${width}`,
    kvLoraRank,
    ropeDim,
    bytesPerToken: width * 4,
    byteRanges: (_pageSize, slot) => [{ offset: slot * width * 4, length: width * 4 }],
    encode(source, sourceOffset, page, _pageSize, slot) {
      const row = view(page, slot)
      for (let i = 0; i < width; i++) row.setFloat32(i * 4, source[sourceOffset + i]!, true)
    },
    decode(page, _pageSize, slot, target, targetOffset) {
      const row = view(page, slot)
      for (let i = 0; i < width; i++) target[targetOffset + i] = row.getFloat32(i * 4, true)
    },
  })
}

/**
 * bfloat16 rows, little-endian, nearest even: `bf16-576` (512 + 64, 1152 bytes) for DeepSeek V2, V3, R1 and Kimi K2;
 * `bf16-512` (448 + 64, 1024 bytes) for V4.
 */
export function bf16Format(kvLoraRank: number, ropeDim: number): CacheFormat {
  const width = rowWidth(kvLoraRank, ropeDim)
  return checkedFormat({
    name: `bf16-${width}`,
    kvLoraRank,
    ropeDim,
    bytesPerToken: width * 2,
    byteRanges: (_pageSize, slot) => [{ offset: slot * width * 2, length: width * 2 }],
    encode(source, sourceOffset, page, _pageSize, slot) {
      encodeBf16(source, sourceOffset, width, page, slot * width * 2)
    },
    decode(page, _pageSize, slot, target, targetOffset) {
      decodeBf16(page, slot * width * 2, width, target, targetOffset)
    },
  })
}

/** Writes `n` values as little-endian bfloat16 bytes from `offset` on. */
export function encodeBf16(source: Float32Array, sourceOffset: number, n: number, page: Uint8Array, offset: number) {
  for (let i = 0; i < n; i++) {
    const word = floatToBf16(source[sourceOffset + i]!)
    page[offset + 2 * i] = word
    page[offset + 2 * i + 1] = word >>> 8
  }
}

/** Reads `n` little-endian bfloat16 values from `offset` on. */
export function decodeBf16(page: Uint8Array, offset: number, n: number, target: Float32Array, targetOffset: number) {
  for (let i = 0; i < n; i++) {
    target[targetOffset + i] = bf16ToFloat(page[offset + 2 * i]! | (page[offset + 2 * i + 1]! << 8))
  }
}

function rowWidth(kvLoraRank: number, ropeDim: number): number {
  if (!Number.isInteger(kvLoraRank) || kvLoraRank < 1 || !Number.isInteger(ropeDim) || ropeDim < 0) {
    throw new InvalidArgumentError(
      `A cache row of ${kvLoraRank} + ${ropeDim} values can't be laid out.`,
      'Give whole widths: kvLoraRank ≥ 1, ropeDim ≥ 0.',
    )
  }
  return kvLoraRank + ropeDim
}
