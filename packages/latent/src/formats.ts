import type { CacheFormat } from '@flashmla/spec'
import { InvalidArgumentError } from '@flashmla/spec'
import { bf16ToFloat, floatToBf16 } from './bf16'

/** Float32 rows of any width: the reference's own format. */
export function f32Format(kvLoraRank: number, ropeDim: number): CacheFormat {
  return rowFormat(`f32-${kvLoraRank + ropeDim}`, kvLoraRank, ropeDim, 4)
}

/** bfloat16 rows: 576 wide (1152 bytes) for DeepSeek V2, V3, R1 and Kimi K2. */
export function bf16Format(kvLoraRank: number, ropeDim: number): CacheFormat {
  return rowFormat(`bf16-${kvLoraRank + ropeDim}`, kvLoraRank, ropeDim, 2)
}

function rowFormat(name: string, kvLoraRank: number, ropeDim: number, bytes: 2 | 4): CacheFormat {
  if (!Number.isInteger(kvLoraRank) || kvLoraRank < 1 || !Number.isInteger(ropeDim) || ropeDim < 0) {
    throw new InvalidArgumentError(
      `A cache row of ${kvLoraRank} + ${ropeDim} values can't be laid out.`,
      'Give whole widths: kvLoraRank ≥ 1, ropeDim ≥ 0.',
    )
  }
  const width = kvLoraRank + ropeDim
  return {
    name,
    kvLoraRank,
    ropeDim,
    bytesPerToken: width * bytes,
    encode(source, sourceOffset, page, _pageSize, slot) {
      const view = new DataView(page.buffer, page.byteOffset + slot * width * bytes, width * bytes)
      for (let i = 0; i < width; i++) {
        const value = source[sourceOffset + i]!
        if (bytes === 4) view.setFloat32(i * 4, value, true)
        else view.setUint16(i * 2, floatToBf16(value), true)
      }
    },
    decode(page, _pageSize, slot, target, targetOffset) {
      const view = new DataView(page.buffer, page.byteOffset + slot * width * bytes, width * bytes)
      for (let i = 0; i < width; i++) {
        target[targetOffset + i] = bytes === 4 ? view.getFloat32(i * 4, true) : bf16ToFloat(view.getUint16(i * 2, true))
      }
    },
  }
}
