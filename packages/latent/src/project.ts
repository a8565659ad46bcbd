import { InvalidArgumentError } from '@flashmla/spec'
import type { MlaConfig } from './config'
import { rmsNorm } from './norm'
import { ropeFrequencies, ropeMagnitude, rotate } from './rope'

type Dimensions = Pick<
  MlaConfig,
  'numHeads' | 'kvLoraRank' | 'qkNopeHeadDim' | 'qkRopeHeadDim' | 'vHeadDim' | 'rmsNormEps' | 'rope'
>

/** x `[n, i]` · weight `[o, i]`ᵀ, float64 inside. @throws InvalidArgumentError when the sizes don't fit */
export function project(x: Float32Array, weight: Float32Array, o: number, i: number): Float32Array {
  fits('x', x.length % i === 0, `rows of ${i}`, x.length)
  fits('weight', weight.length === o * i, `${o} × ${i} values`, weight.length)
  const n = x.length / i
  const out = new Float32Array(n * o)
  for (let row = 0; row < n; row++) {
    for (let j = 0; j < o; j++) {
      let sum = 0
      for (let k = 0; k < i; k++) sum += x[row * i + k]! * weight[j * i + k]!
      out[row * o + j] = sum
    }
  }
  return out
}

/**
 * Down projection: what the cache keeps of hidden `[n, hidden]` at `positions [n]`, rows `[n, r + rope]` of the normed
 * compressed latent and the rotated shared key (arXiv 2405.04434, §2.1.2–2.1.3; `kv_a_proj_with_mqa`, `kv_a_layernorm`).
 * @throws InvalidArgumentError when the sizes don't fit
 */
export function downProject(
  hidden: Float32Array,
  kvA: Float32Array,
  norm: Float32Array,
  positions: ArrayLike<number>,
  config: Dimensions,
): Float32Array {
  const { kvLoraRank: r, qkRopeHeadDim: ropeDim, rope } = config
  const width = r + ropeDim
  const i = kvA.length / width
  fits('kvA', kvA.length > 0 && kvA.length % width === 0, `${width} rows`, kvA.length)
  fits('hidden', hidden.length === positions.length * i, `${positions.length} rows of ${i}`, hidden.length)
  fits('norm', norm.length === r, `${r} values`, norm.length)
  const rows = project(hidden, kvA, width, i)
  const frequencies = ropeFrequencies(ropeDim, rope)
  for (let n = 0; n < positions.length; n++) {
    rows.set(rmsNorm(rows.subarray(n * width, n * width + r), norm, config.rmsNormEps), n * width)
    rotate(rows, n * width + r, frequencies, positions[n]!, rope.interleaved, ropeMagnitude(rope))
  }
  return rows
}

/**
 * Up projection of cached rows `[n, r + rope]` by kvB `[h · (nope + v), r]`: keys `[n, h, nope + rope]`, each head with
 * the shared rotary part, and values `[n, h, v]`.
 * @throws InvalidArgumentError when the sizes don't fit
 */
export function upProject(
  rows: Float32Array,
  kvB: Float32Array,
  config: Dimensions,
): { keys: Float32Array; values: Float32Array } {
  const { numHeads: h, kvLoraRank: r, qkNopeHeadDim: nope, qkRopeHeadDim: ropeDim, vHeadDim: v } = config
  const width = r + ropeDim
  fits('rows', rows.length % width === 0, `rows of ${width}`, rows.length)
  const n = rows.length / width
  const keys = new Float32Array(n * h * (nope + ropeDim))
  const values = new Float32Array(n * h * v)
  for (let row = 0; row < n; row++) {
    const full = project(rows.subarray(row * width, row * width + r), kvB, h * (nope + v), r)
    const rotary = rows.subarray(row * width + r, (row + 1) * width)
    for (let head = 0; head < h; head++) {
      const from = head * (nope + v)
      const key = (row * h + head) * (nope + ropeDim)
      keys.set(full.subarray(from, from + nope), key)
      keys.set(rotary, key + nope)
      values.set(full.subarray(from + nope, from + nope + v), (row * h + head) * v)
    }
  }
  return { keys, values }
}

/**
 * Absorbs W_UK into the query: q `[n, h, nope + rope]` by uk `[h, r, nope]` to `[n, h, r + rope]`, whose product with a
 * cached row is the score that q has with the full key.
 * @throws InvalidArgumentError when the sizes don't fit
 */
export function absorbQuery(q: Float32Array, uk: Float32Array, config: Dimensions): Float32Array {
  const { numHeads: h, kvLoraRank: r, qkNopeHeadDim: nope, qkRopeHeadDim: ropeDim } = config
  fits('q', q.length % (h * (nope + ropeDim)) === 0, `rows of ${h} × ${nope + ropeDim}`, q.length)
  fits('uk', uk.length === h * r * nope, `${h} × ${r} × ${nope} values`, uk.length)
  const out = new Float32Array((q.length / (nope + ropeDim)) * (r + ropeDim))
  for (let row = 0; row < q.length / (nope + ropeDim); row++) {
    const head = row % h
    const query = q.subarray(row * (nope + ropeDim), (row + 1) * (nope + ropeDim))
    const weight = uk.subarray(head * r * nope, (head + 1) * r * nope)
    out.set(project(query.subarray(0, nope), weight, r, nope), row * (r + ropeDim))
    out.set(query.subarray(nope), row * (r + ropeDim) + r)
  }
  return out
}

/** W_UV of each head: latent attention output `[n, h, r]` by uv `[h, v, r]` to `[n, h, v]`. @throws InvalidArgumentError when the sizes don't fit */
export function expandOutput(latent: Float32Array, uv: Float32Array, config: Dimensions): Float32Array {
  const { numHeads: h, kvLoraRank: r, vHeadDim: v } = config
  fits('latent', latent.length % (h * r) === 0, `rows of ${h} × ${r}`, latent.length)
  fits('uv', uv.length === h * v * r, `${h} × ${v} × ${r} values`, uv.length)
  const out = new Float32Array((latent.length / r) * v)
  for (let row = 0; row < latent.length / r; row++) {
    const head = row % h
    out.set(
      project(latent.subarray(row * r, (row + 1) * r), uv.subarray(head * v * r, (head + 1) * v * r), v, r),
      row * v,
    )
  }
  return out
}

function fits(name: string, holds: boolean, need: string, size: number): void {
  if (holds) return
  throw new InvalidArgumentError(
    `${name} has ${size} values, not ${need}.`,
    'Give the shape that the function documents.',
  )
}
