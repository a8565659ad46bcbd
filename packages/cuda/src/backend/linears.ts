import { MlaElementsParams, MlaLinearParams } from '../kernels/model-params'
import type { BackendDevice } from './device'
import { isOfFewRows, type Rows, type RowsProduct, runFewRows } from './few-rows'
import { type ProductKernel, runLinear } from './linear'
import { chooseTiles } from './tiles'
import type { CudaWeight } from './weight'

/** Queues products of the same rows: two by one launch for few rows; gated ones by one with bf16 weights on Hopper, otherwise by three. */
export function runLinears(device: BackendDevice, x: bigint, n: number, products: readonly RowsProduct[]): void {
  const wanted = products.filter(({ weight }) => n * weight.shape[0]! > 0)
  if (wanted.length === 0) return
  const i = wanted[0]!.weight.shape[1]!
  const rows = { x, n, i, vector: i % 8 === 0 && x % 16n === 0n }
  const few: RowsProduct[] = []
  for (const product of wanted) {
    if (isOfFewRows(rows, product)) few.push(product)
    else runProduct(device, rows, product)
  }
  for (let p = 0; p < few.length; p += 2) {
    const [first, other] = [few[p]!, few[p + 1]]
    if (first.up || other) runFewRows(device, rows, first, other)
    else runProduct(device, rows, first)
  }
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
  let kernel = gate.gatedKernel
  if (kernel?.n !== n) {
    kernel = gatedKernelFor(device, n, o, i)
    gate.gatedKernel = kernel
  }
  void up.address
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
  device.run(kernel.symbol, MlaLinearParams, kernel.grid, values, kernel)
}

function gatedKernelFor({ context }: BackendDevice, n: number, o: number, i: number): ProductKernel {
  // A tile has half of its columns from each weight.
  const { symbol, rows, outputs, cluster } = chooseTiles({ n, o: 2 * o, i, heads: 1 }, context, 'gated')
  const grid = [Math.ceil(n / rows) * cluster, Math.ceil(o / (outputs / 2)), 1] as const
  return { n, heads: 1, vector: true, symbol, grid, cluster }
}
