import { MlaLinearParams } from '../kernels/model-params'
import type { BackendDevice } from './device'
import { MOST_FEW_ROWS, runFewRows } from './few-rows'
import type { CudaTensor } from './tensor'
import { chooseMma, chooseTiles, timeOfOneRow } from './tiles'
import type { CudaWeight } from './weight'

/** Rows of a tile, and columns of one with f32 weights. */
export const TILE = 64
/** Columns of a tile with bf16 weights, in the portable kernels. */
export const HALF_TILE = 128
/** Most rows for which a warp reads its weight rows for itself: past it tiles that share weights are faster. */
const FEW_ROWS = 16
/** The same where the tensor cores take bf16 weights as they are read. */
const FEW_MMA_ROWS = 64
/** Outputs that a block of 8 warps takes, by the rows of x that it takes. */
const FEW = [
  { rows: 1, symbol: 'mla_linear_few_1', outputs: 8 },
  { rows: 4, symbol: 'mla_linear_few_4', outputs: 16 },
  { rows: 8, symbol: 'mla_linear_few_8', outputs: 16 },
] as const

/** Kernels in whose place those of `runFewRows` are a little faster, for rows without gaps. */
const TAKEN_AS_ROWS = ['mla_linear_few_1', 'mla_linear_mma_16x16']

export interface Product {
  /** `[n, heads, i]`, rows `xStride` elements apart, heads `xHeadStride`: i where it isn't given. */
  readonly x: bigint
  readonly xStride: number
  readonly xHeadStride?: number
  /** `[n, heads, o]`, rows `outStride` elements apart, heads `outHeadStride`: o where it isn't given. */
  readonly out: bigint
  readonly outStride: number
  readonly outHeadStride?: number
  readonly n: number
  /** `[heads, o, i]`, or `[o, i]` */
  readonly weight: CudaWeight
  readonly heads?: number
  /** Added to what `out` holds. */
  readonly add?: boolean
}

/** The kernel of a product, and what it was chosen for. */
export interface ProductKernel {
  readonly n: number
  readonly heads: number
  readonly vector: boolean
  readonly symbol: string
  readonly grid: readonly [number, number, number]
  readonly cluster: number
}

/** Queues out = x · weightᵀ, or adds it, for rows without gaps: head by head where the weight is `[h, o, i]`. */
export function multiply(
  device: BackendDevice,
  out: CudaTensor<'f32'>,
  x: CudaTensor<'f32'>,
  weight: CudaWeight,
  add = false,
): void {
  const [o, i] = [weight.shape.at(-2)!, weight.shape.at(-1)!]
  const heads = weight.shape.length === 3 ? weight.shape[0]! : 1
  const [xStride, outStride] = [heads * i, heads * o]
  runLinear(device, { x: x.address, xStride, out: out.address, outStride, n: x.size / xStride, weight, heads, add })
}

/** Queues out[r, h] = x[r, h] · weight[h]ᵀ, or adds it. */
export function runLinear(device: BackendDevice, product: Product): void {
  const { x, xStride, out, outStride, n, weight, heads = 1, add } = product
  const [o, i] = [weight.shape.at(-2)!, weight.shape.at(-1)!]
  if (n === 0 || o === 0) return
  const { xHeadStride = i, outHeadStride = o } = product
  const vector = i % 8 === 0 && xStride % 4 === 0 && xHeadStride % 4 === 0 && x % 16n === 0n
  // Steps repeat: what was chosen last is mostly what is asked for.
  let kernel = weight.kernel
  if (kernel?.n !== n || kernel.heads !== heads || kernel.vector !== vector) {
    kernel = kernelFor(device, weight, n, heads, vector)
    weight.kernel = kernel
  }
  const dense = n === 1 || (xStride === i && outStride === o)
  if (heads === 1 && dense && TAKEN_AS_ROWS.includes(kernel.symbol)) {
    runFewRows(device, { x, n, i, vector }, { out, weight }, undefined, add)
    return
  }
  const values = {
    x,
    weight: weight.address,
    out,
    n,
    o,
    i,
    x_stride: xStride,
    x_head_stride: xHeadStride,
    out_stride: outStride,
    out_head_stride: outHeadStride,
    heads,
    weight_dtype: weight.code,
    vector: vector ? 1 : 0,
    add: add ? 1 : 0,
    weight_map: weight.map ?? null,
    up_map: null,
  }
  device.run(kernel.symbol, MlaLinearParams, kernel.grid, values, kernel)
}

/**
 * The kernel for which the least time is estimated: a warp for each output of one row, the tensor cores on weights as they are read for up to 16, tiles
 * of Hopper's where it has bf16 weights. Else kernels for few rows, limited by reading the weights, and one for many.
 */
function kernelFor(
  device: BackendDevice,
  weight: CudaWeight,
  n: number,
  heads: number,
  vector: boolean,
): ProductKernel {
  const [o, i] = [weight.shape.at(-2)!, weight.shape.at(-1)!]
  const shape = { n, o, i, heads }
  const chosen = (symbol: string, x: number, y: number, cluster = 1): ProductKernel => {
    return { n, heads, vector, symbol, grid: [x, y, heads], cluster }
  }
  const halves = vector && i % 32 === 0 && weight.dtype === 'bf16'
  const few = n === 1 ? { time: timeOfOneRow(shape) } : halves && n <= MOST_FEW_ROWS ? chooseMma(shape) : undefined
  if (vector && weight.map !== undefined) {
    const { symbol, rows, outputs, cluster, time } = chooseTiles(shape, device.context)
    if (!few || time < few.time) return chosen(symbol, Math.ceil(n / rows) * cluster, Math.ceil(o / outputs), cluster)
  }
  if (few && 'outputs' in few) return chosen(few.symbol, Math.ceil(o / few.outputs), 1)
  if (halves && n > 1 && n <= FEW_MMA_ROWS) return chosen('mla_linear_mma_32x32', Math.ceil(o / 32), Math.ceil(n / 32))
  if (n <= FEW_ROWS) {
    const { symbol, outputs, rows } = FEW.find((each) => n <= each.rows) ?? FEW[2]
    return chosen(symbol, Math.ceil(o / outputs), Math.ceil(n / rows))
  }
  return weight.dtype === 'bf16'
    ? chosen('mla_linear_half', Math.ceil(n / TILE), Math.ceil(o / HALF_TILE))
    : chosen('mla_linear_many', Math.ceil(n / TILE), Math.ceil(o / TILE))
}
