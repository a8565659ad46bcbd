import type { Backend, LinearProduct, Norm, PagedCache, Rotation, Tensor, Weight } from '@flashmla/spec'

type F32 = Tensor<'f32'>
type I32 = Tensor<'i32'>

/** x += y · weightᵀ. `product` has x's shape, for backends that do it in two. */
export function addLinear(backend: Backend, x: F32, y: F32, weight: Weight, product: F32): void {
  if (backend.addLinear) {
    backend.addLinear(x, y, weight)
    return
  }
  backend.linear(product, y, weight)
  backend.add(x, product)
}

/** A product, and memory of `out`'s shape for a gated one where the backend does it in three. */
export interface Product extends LinearProduct {
  readonly other?: F32
}

/** Each product of x; see `Backend.linears`. */
export function linears(backend: Backend, x: F32, products: readonly Product[]): void {
  if (backend.linears) {
    backend.linears(x, products)
    return
  }
  for (const { out, weight, up, other } of products) {
    backend.linear(out, x, weight)
    if (!up) continue
    backend.linear(other!, x, up)
    backend.siluMul(out, out, other!)
  }
}

/** out `[n, h, rank + rope]` of q `[n, h, nope + rope]`, whose rotary columns may be turned then; see `Backend.absorbQueries`. */
export function absorbQueries(
  backend: Backend,
  out: F32,
  q: F32,
  uk: Weight,
  rotation: Rotation,
  /** `[n, h, nope]` and `[n, h, rank]` */
  work: { readonly qNope: F32; readonly qLatent: F32 },
): void {
  if (backend.absorbQueries) {
    backend.absorbQueries(out, q, uk, rotation)
    return
  }
  const { table, positions, interleaved } = rotation
  const [, rank, nope] = uk.shape as [number, number, number]
  backend.rotary(q, nope, table, positions, interleaved)
  backend.copyColumns(work.qNope, 0, q, 0, nope)
  backend.headLinear(work.qLatent, work.qNope, uk)
  backend.copyColumns(out, 0, work.qLatent, 0, rank)
  backend.copyColumns(out, rank, q, nope, 2 * table.shape[1]!)
}

/** Norm, rotation and writing of the rows that the projection leaves in kv `[n, rank + rope]`; see `Backend.appendLatents`. */
export function appendLatents(
  backend: Backend,
  cache: PagedCache,
  kv: F32,
  norm: Norm,
  rotation: Rotation,
  slots: I32,
  /** `[n, rank]` */
  latent: F32,
): void {
  const { kvLoraRank: rank } = cache.format
  if (backend.appendLatents) {
    backend.appendLatents(cache, kv, norm, rotation, slots)
    return
  }
  const { table, positions, interleaved } = rotation
  backend.rotary(kv, rank, table, positions, interleaved)
  backend.copyColumns(latent, 0, kv, 0, rank)
  backend.rmsNorm(latent, latent, norm.weight, norm.eps)
  backend.copyColumns(kv, 0, latent, 0, rank)
  backend.append(cache, kv, slots)
}
