import { MlaLinearParams } from '../kernels/model-params'
import type { BackendDevice } from './device'
import { chooseTiles, timeOfOneRow } from './tiles'
import type { CudaWeight } from './weight'

/** Rows of a tile, and columns of one with f32 weights. */
export const TILE = 64
/** Columns of a tile with bf16 weights, in the portable kernels. */
export const HALF_TILE = 128
/** Most rows for which a warp reads its weight rows for itself: past it tiles that share weights are faster. */
const FEW_ROWS = 16
/** The same where the tensor cores take bf16 weights as they are read, and the outputs of a block then. */
const FEW_MMA_ROWS = 64
const MMA_OUTPUTS = 32
/** Outputs that a block of 8 warps takes, by the rows of x that it takes. */
const FEW = [
  { rows: 1, symbol: 'mla_linear_few_1', outputs: 8 },
  { rows: 4, symbol: 'mla_linear_few_4', outputs: 16 },
  { rows: 8, symbol: 'mla_linear_few_8', outputs: 16 },
] as const

export interface Product {
  /** `[n, heads, i]`, rows `xStride` elements apart. */
  readonly x: bigint
  readonly xStride: number
  /** `[n, heads, o]`, rows `outStride` elements apart. */
  readonly out: bigint
  readonly outStride: number
  readonly n: number
  /** `[heads, o, i]` */
  readonly weight: CudaWeight
  readonly heads: number
}

/**
 * Queues out[r, h] = x[r, h] · weight[h]ᵀ. bf16 weights on Hopper: tiles as they are estimated. Otherwise kernels for few rows, limited by reading
 * the weights, and one for many.
 */
export function runLinear(device: BackendDevice, product: Product): void {
  const { x, xStride, out, outStride, n, weight, heads } = product
  const [o, i] = weight.shape.slice(-2) as [number, number]
  if (n === 0 || o === 0) return
  const vector = i % 8 === 0 && xStride % 4 === 0 && x % 16n === 0n
  const values = {
    x,
    weight: weight.address,
    out,
    n,
    o,
    i,
    x_stride: xStride,
    out_stride: outStride,
    heads,
    weight_dtype: weight.code,
    vector: vector ? 1 : 0,
    reserved: 0,
    weight_map: weight.map ?? null,
  }
  if (vector && weight.map !== undefined) {
    const shape = { n, o, i, heads }
    const { symbol, rows, outputs, cluster, time } = chooseTiles(shape, device.context)
    if (n > 1 || time < timeOfOneRow(shape)) {
      const grid = [Math.ceil(n / rows) * cluster, Math.ceil(o / outputs), heads] as const
      device.run(symbol, MlaLinearParams, grid, values, { cluster })
      return
    }
  }
  if (n > 1 && n <= FEW_MMA_ROWS && weight.dtype === 'bf16' && vector && i % 32 === 0) {
    const rows = n <= 16 ? 16 : 32
    const grid = [Math.ceil(o / MMA_OUTPUTS), Math.ceil(n / rows), heads] as const
    device.run(`mla_linear_mma_${rows}`, MlaLinearParams, grid, values)
    return
  }
  if (n <= FEW_ROWS) {
    const few = FEW.find(({ rows }) => n <= rows) ?? FEW[2]
    const grid = [Math.ceil(o / few.outputs), Math.ceil(n / few.rows), heads] as const
    device.run(few.symbol, MlaLinearParams, grid, values)
    return
  }
  const [symbol, columns] =
    weight.dtype === 'bf16' ? (['mla_linear_half', HALF_TILE] as const) : (['mla_linear_many', TILE] as const)
  device.run(symbol, MlaLinearParams, [Math.ceil(n / TILE), Math.ceil(o / columns), heads], values)
}
