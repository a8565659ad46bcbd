import { MlaAppendLatentsParams, MlaAppendRowsParams } from '../kernels/model-params'
import type { CudaCache } from './cache'
import type { BackendDevice } from './device'
import { runLinear } from './linear'
import { turnColumns } from './rows'
import type { CudaTensor } from './tensor'
import type { CudaWeight } from './weight'

type F32 = CudaTensor<'f32'>
type I32 = CudaTensor<'i32'>

/** Queues the writing of rows of latent to their slots. */
export function appendRows(device: BackendDevice, cache: CudaCache, latent: F32, slots: I32): void {
  device.run('mla_append_rows', MlaAppendRowsParams, [slots.size, 1], {
    latent: latent.address,
    slots: slots.address,
    cache: cache.address,
    n: slots.size,
    num_blocks: cache.numBlocks,
    page_size: cache.pageSize,
    format: cache.code,
    kv_lora_rank: cache.format.kvLoraRank,
    rope_dim: cache.format.ropeDim,
  })
}

/** `Rotation` of @flashmla/spec, by the backend's own tensors. */
export interface OwnRotation {
  readonly table: F32
  readonly positions: I32
  readonly interleaved: boolean
}

/** Queues norm, rotation and writing of rows as the projection leaves them. */
export function appendLatents(
  device: BackendDevice,
  cache: CudaCache,
  latent: F32,
  norm: { readonly weight: F32; readonly eps: number },
  { table, positions, interleaved }: OwnRotation,
  slots: I32,
): void {
  device.run('mla_append_latents', MlaAppendLatentsParams, [slots.size, 1], {
    latent: latent.address,
    norm: norm.weight.address,
    table: table.address,
    positions: positions.address,
    slots: slots.address,
    cache: cache.address,
    n: slots.size,
    num_blocks: cache.numBlocks,
    max_positions: table.shape[0]!,
    page_size: cache.pageSize,
    format: cache.code,
    kv_lora_rank: cache.format.kvLoraRank,
    rope_dim: cache.format.ropeDim,
    eps: norm.eps,
    interleaved: interleaved ? 1 : 0,
  })
}

/** Queues out `[n, h, rank + rope]` = (uk · nope part, rotary part turned) of q `[n, h, nope + rope]`. */
export function absorbQueries(device: BackendDevice, out: F32, q: F32, uk: CudaWeight, rotation: OwnRotation): void {
  const [heads, rank, nope] = uk.shape as [number, number, number]
  const n = rotation.positions.size
  const rope = 2 * rotation.table.shape[1]!
  runLinear(device, {
    x: q.address,
    xStride: heads * (nope + rope),
    xHeadStride: nope + rope,
    out: out.address,
    outStride: heads * (rank + rope),
    outHeadStride: rank + rope,
    n,
    weight: uk,
    heads,
  })
  turnColumns(device, { x: q, start: nope, out, outStart: rank, rows: n * heads, ...rotation })
}
