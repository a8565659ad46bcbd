import { MlaElementsParams, MlaLinearParams } from '../kernels/model-params'
import type { BackendDevice } from './device'
import { runLinear } from './linear'
import { chooseTiles, timeOfOneRow } from './tiles'
import type { CudaWeight } from './weight'

/** Outputs that a block of 8 warps takes for one row. */
const OUTPUTS = 8

export interface GatedProduct {
  /** `[n, i]` */
  readonly x: bigint
  /** `[n, o]` */
  readonly out: bigint
  readonly n: number
  /** `[o, i]` each */
  readonly gate: CudaWeight
  readonly up: CudaWeight
}

interface GatedKernel {
  readonly symbol: string
  readonly grid: readonly [number, number]
  readonly cluster: number
}

/** Queues out = silu(x · gateᵀ) · (x · upᵀ): by one launch for one row, and with bf16 weights on Hopper; otherwise by three. */
export function runGated(device: BackendDevice, product: GatedProduct): void {
  const { x, out, n, gate, up } = product
  const [o, i] = gate.shape as [number, number]
  if (n === 0 || o === 0) return
  const vector = i % 8 === 0 && x % 16n === 0n
  const kernel = gate.dtype === up.dtype ? kernelFor(device, product, vector) : undefined
  if (kernel) {
    const values = {
      x,
      weight: gate.address,
      up: up.address,
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
      vector: vector ? 1 : 0,
      add: 0,
      weight_map: gate.map ?? null,
      up_map: up.map ?? null,
    }
    device.run(kernel.symbol, MlaLinearParams, kernel.grid, values, kernel)
    return
  }
  const other = device.workspace('gated up', n * o * 4).address
  runLinear(device, { x, xStride: i, out, outStride: o, n, weight: gate })
  runLinear(device, { x, xStride: i, out: other, outStride: o, n, weight: up })
  device.run('mla_silu_mul', MlaElementsParams, [Math.ceil((n * o) / 1024), 1], { out, a: out, b: other, n: n * o })
}

function kernelFor(
  { context }: BackendDevice,
  { n, gate, up }: GatedProduct,
  vector: boolean,
): GatedKernel | undefined {
  const [o, i] = gate.shape as [number, number]
  if (vector && gate.map !== undefined && up.map !== undefined) {
    // A tile has half of its columns from each.
    const both = { n, o: 2 * o, i, heads: 1 }
    const { symbol, rows, outputs, cluster, time } = chooseTiles(both, context, 'gated')
    if (n > 1 || time < timeOfOneRow(both))
      return { symbol, grid: [Math.ceil(n / rows) * cluster, Math.ceil(o / (outputs / 2))], cluster }
  }
  return n === 1 ? { symbol: 'mla_gated_few', grid: [Math.ceil(o / OUTPUTS), 1], cluster: 1 } : undefined
}
