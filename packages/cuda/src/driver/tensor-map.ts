import type { Context } from './context'
import { bytesOf } from './driver'

/** CUtensorMapDataType of the two 16-bit types. */
const DATA_TYPES = { f16: 6, bf16: 9 } as const
const INTERLEAVE_NONE = 0
const SWIZZLE_128B = 3
/** CUtensorMapL2promotion by bytes. */
const L2_PROMOTIONS = { 0: 0, 64: 1, 128: 2, 256: 3 } as const
const OOB_FILL_ZEROS = 0
const BYTES = 128
const ALIGNMENT = 64

export interface TensorMapOptions {
  readonly dtype: keyof typeof DATA_TYPES
  /** Device address, a multiple of 16. */
  readonly address: bigint
  /** Elements along each dimension, innermost first; 1 to 5 of them. */
  readonly dims: readonly number[]
  /** Bytes between neighbours along each dimension but the innermost, multiples of 16. */
  readonly strides: readonly (number | bigint)[]
  /** Elements that one copy brings along each dimension. */
  readonly box: readonly number[]
  /** Bytes that the L2 cache fetches at a time; 256 without it. */
  readonly l2Promotion?: keyof typeof L2_PROMOTIONS
}

/** Host bytes whose address is a multiple of `alignment`, in a buffer of their own. */
export function alignedBytes(context: Context, bytes: number, alignment: number): Uint8Array {
  const whole = new Uint8Array(new ArrayBuffer(bytes + alignment))
  const address = context.driver.api.address(whole)
  const offset = Number((BigInt(alignment) - (address % BigInt(alignment))) % BigInt(alignment))
  return whole.subarray(offset, offset + bytes)
}

/**
 * Describes a tensor in device memory to the copy engine (TMA): 128-byte swizzle, zeros outside. The 128 bytes are 64-byte
 * aligned and go to a kernel by value. `into` rewrites an earlier map in place.
 * @throws CudaError naming type, address, dimensions, strides and box when the driver refuses them
 */
export function encodeTensorMap(context: Context, options: TensorMapOptions, into?: Uint8Array): Uint8Array {
  const map = into ?? alignedBytes(context, BYTES, ALIGNMENT)
  const { dtype, address, dims, strides, box, l2Promotion = 256 } = options
  const status = context.attempt(
    'cuTensorMapEncodeTiled',
    map,
    DATA_TYPES[dtype],
    dims.length,
    address,
    bytesOf(BigUint64Array.from(dims, BigInt)),
    bytesOf(BigUint64Array.from(strides, BigInt)),
    bytesOf(Uint32Array.from(box)),
    bytesOf(new Uint32Array(dims.length).fill(1)),
    INTERLEAVE_NONE,
    SWIZZLE_128B,
    L2_PROMOTIONS[l2Promotion],
    OOB_FILL_ZEROS,
  )
  if (status !== 0) {
    const about = `${dtype} at 0x${address.toString(16)}, dims [${dims}], strides [${strides}], box [${box}]`
    context.fail(status, 'cuTensorMapEncodeTiled', about)
  }
  return map
}
