import { MlaLinearRowsParams } from '../kernels/model-params'
import type { BackendDevice } from './device'
import type { CudaWeight } from './weight'

/** Most rows for which two products go by one launch. */
export const MOST_FEW_ROWS = 16
/** Bytes of weights from which on Hopper's tiles, which read more at a time, are no slower for several rows. */
const MOST_BYTES = 64 * 2 ** 20
/** Outputs of a block, of one row or a gated product, and of others. */
const OUTPUTS = { least: 8, most: 16 } as const

/** One of several products of the same rows. */
export interface RowsProduct {
  /** `[n, o]` */
  readonly out: bigint
  /** `[o, i]` */
  readonly weight: CudaWeight
  /** `[o, i]`, where the product is gated: silu(x · weightᵀ) · (x · upᵀ). */
  readonly up?: CudaWeight | undefined
}

/** Rows that are multiplied, `[n, i]`. */
export interface Rows {
  readonly x: bigint
  readonly n: number
  readonly i: number
  /** Whether rows of x and of the weights start at multiples of 16 bytes. */
  readonly vector: boolean
}

/** Whether `runFewRows` is to take a product: of one row any, of up to 16 by the tensor cores those with bf16 weights, unless they are large. */
export function isOfFewRows({ n, i, vector }: Rows, { weight, up }: RowsProduct): boolean {
  const dtype = weight.dtype
  if (up && up.dtype !== dtype) return false
  if (n === 1) return true
  const bytes = weight.shape[0]! * i * (up ? 4 : 2)
  return n <= MOST_FEW_ROWS && vector && i % 32 === 0 && dtype === 'bf16' && bytes <= MOST_BYTES
}

/** Queues a product of few rows, or two, by one launch. `add`: to what `out` holds. */
export function runFewRows(
  device: BackendDevice,
  { x, n, i, vector }: Rows,
  first: RowsProduct,
  other?: RowsProduct,
  add = false,
): void {
  const blocksOf = ({ weight, up }: RowsProduct) =>
    Math.ceil(weight.shape.at(-2)! / (up || n === 1 ? OUTPUTS.least : OUTPUTS.most))
  const blocks = blocksOf(first)
  device.run(
    n === 1 ? 'mla_linear_row' : 'mla_linear_rows_mma',
    MlaLinearRowsParams,
    [blocks + (other ? blocksOf(other) : 0), 1],
    {
      x,
      weight: first.weight.address,
      up: first.up ? first.up.address : null,
      out: first.out,
      other_weight: other ? other.weight.address : null,
      other_up: other?.up ? other.up.address : null,
      other_out: other ? other.out : null,
      n,
      i,
      o: first.weight.shape.at(-2)!,
      other_o: other ? other.weight.shape.at(-2)! : 0,
      weight_dtype: first.weight.code,
      other_dtype: other ? other.weight.code : 0,
      vector: vector ? 1 : 0,
      blocks,
      add: add ? 1 : 0,
      reserved: 0,
    },
  )
}
