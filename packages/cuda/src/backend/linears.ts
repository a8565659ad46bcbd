import { MlaElementsParams, MlaLinearParams, MlaLinearRowsParams } from '../kernels/model-params'
import type { BackendDevice } from './device'
import { runLinear } from './linear'
import { chooseTiles } from './tiles'
import type { CudaWeight } from './weight'

/** Most rows for which two products go by one launch, and a warp reads its weight rows for all of them. */
export const MOST_TOGETHER = 8
/** Outputs of a block of mla_linear_rows_*, of one row or gated, and of more rows. */
const OUTPUTS = { one: 8, more: 16 } as const

/** One of several products of the same rows. */
export interface RowsProduct {
  /** `[n, o]` */
  readonly out: bigint
  /** `[o, i]` */
  readonly weight: CudaWeight
  /** `[o, i]`, where the product is gated: silu(x · weightᵀ) · (x · upᵀ). */
  readonly up: CudaWeight | undefined
}

/** Rows that are multiplied, `[n, i]`. */
interface Rows {
  readonly x: bigint
  readonly n: number
  readonly i: number
  /** Whether rows of x and of the weights start at multiples of 16 bytes. */
  readonly vector: boolean
}

/** Queues products of the same rows: two by one launch for few rows; gated ones by one with bf16 weights on Hopper, otherwise by three. */
export function runLinears(device: BackendDevice, x: bigint, n: number, products: readonly RowsProduct[]): void {
  const wanted = products.filter(({ weight }) => n * weight.shape[0]! > 0)
  if (wanted.length === 0) return
  const i = wanted[0]!.weight.shape[1]!
  const rows = { x, n, i, vector: i % 8 === 0 && x % 16n === 0n }
  // Two types in one gated product have no kernel.
  const alone = ({ weight, up }: RowsProduct) => n > MOST_TOGETHER || (up !== undefined && up.dtype !== weight.dtype)
  for (const product of wanted.filter(alone)) runProduct(device, rows, product)
  const others = wanted.filter((product) => !alone(product))
  for (let p = 0; p < others.length; p += 2) {
    const [first, other] = [others[p]!, others[p + 1]]
    if (first.up || other) runRows(device, rows, first, other)
    else runProduct(device, rows, first)
  }
}

/** Queues a product of few rows, or two, by one launch; `add`: see `Product`. */
export function runRows(
  device: BackendDevice,
  { x, n, i, vector }: Rows,
  first: RowsProduct,
  other?: RowsProduct,
  add = false,
): void {
  const blocksOf = ({ weight, up }: RowsProduct) =>
    Math.ceil(weight.shape[0]! / (up || n === 1 ? OUTPUTS.one : OUTPUTS.more))
  const blocks = blocksOf(first)
  const rows = n === 1 ? 1 : n <= 4 ? 4 : 8
  const grid = [blocks + (other ? blocksOf(other) : 0), Math.ceil(n / rows)] as const
  device.run(`mla_linear_rows_${rows}`, MlaLinearRowsParams, grid, {
    x,
    weight: first.weight.address,
    up: first.up ? first.up.address : null,
    out: first.out,
    other_weight: other ? other.weight.address : null,
    other_up: other?.up ? other.up.address : null,
    other_out: other ? other.out : null,
    n,
    i,
    o: first.weight.shape[0]!,
    other_o: other ? other.weight.shape[0]! : 0,
    weight_dtype: first.weight.code,
    other_dtype: other ? other.weight.code : 0,
    vector: vector ? 1 : 0,
    blocks,
    add: add ? 1 : 0,
    reserved: 0,
  })
}

function runProduct(device: BackendDevice, rows: Rows, { out, weight, up }: RowsProduct): void {
  const { x, n, i, vector } = rows
  const o = weight.shape[0]!
  const plain = (to: bigint, by: CudaWeight) =>
    runLinear(device, { x, xStride: i, out: to, outStride: o, n, weight: by })
  if (up && vector && weight.map !== undefined && up.map !== undefined) {
    runGated(device, rows, out, weight, up)
  } else if (up) {
    const other = device.workspace('gated up', n * o * 4).address
    plain(out, weight)
    plain(other, up)
    device.run('mla_silu_mul', MlaElementsParams, [Math.ceil((n * o) / 1024), 1], { out, a: out, b: other, n: n * o })
  } else {
    plain(out, weight)
  }
}

function runGated(device: BackendDevice, { x, n, i }: Rows, out: bigint, gate: CudaWeight, up: CudaWeight): void {
  const o = gate.shape[0]!
  // A tile has half of its columns from each weight.
  const { symbol, rows, outputs, cluster } = chooseTiles({ n, o: 2 * o, i, heads: 1 }, device.context, 'gated')
  const values = {
    x,
    weight: gate.address,
    out,
    n,
    o,
    i,
    x_stride: i,
    x_head_stride: i,
    out_stride: o,
    out_head_stride: o,
    heads: 1,
    weight_dtype: gate.code,
    vector: 1,
    add: 0,
    weight_map: gate.map!,
    up_map: up.map!,
  }
  void up.address
  const grid = [Math.ceil(n / rows) * cluster, Math.ceil(o / (outputs / 2))] as const
  device.run(symbol, MlaLinearParams, grid, values, { cluster })
}
