import type { CacheFormat, PagedCache } from './cache-format'
import type { DType, HostArray, Tensor, Weight, WeightSource } from './tensor'

/** One step's queries over paged sequences, as host arrays. `b` sequences, `t` query rows in all. */
export interface BatchStep {
  /** `[b + 1]` rows of the queries: sequence s owns rows queryStart[s] … queryStart[s + 1] − 1. Starts at 0, never falls. */
  readonly queryStart: Int32Array
  /** `[b]` tokens in the cache, the queries' own included. */
  readonly seqLens: Int32Array
  /** `[b, blockTableStride]` block ids; entries past a sequence's last page are never read. */
  readonly blockTable: Int32Array
  readonly blockTableStride: number
}

export interface BatchCapacity {
  readonly maxSequences: number
  /** Query rows of one step. */
  readonly maxTokens: number
  /** Pages of one sequence. */
  readonly maxBlocks: number
}

/** Device copy of a step and the attention plan made from it, in memory sized once: updated in place, so a captured step can be replayed. */
export interface PagedBatch {
  readonly capacity: BatchCapacity
  /** @throws InvalidArgumentError when the step is inconsistent or past the capacity; the previous step then stays */
  update(step: BatchStep): void
  dispose(): void
}

/** A recorded sequence of operations that runs again on the same tensors. */
export interface StepGraph {
  /** @throws DisposedError when it, or a tensor that it uses, is gone */
  replay(): void
  dispose(): void
}

export interface RouterOptions {
  readonly scoring: 'softmax' | 'sigmoid'
  readonly method: 'greedy' | 'group_limited_greedy' | 'noaux_tc'
  readonly topK: number
  readonly numGroups: number
  readonly topkGroups: number
  readonly normalize: boolean
  readonly scale: number
}

/** How the rotary columns of n rows, or of n tokens' heads, are turned; see `Backend.rotary`. */
export interface Rotation {
  /** `[maxPositions, pairs, 2]` (cos, sin) */
  readonly table: Tensor<'f32'>
  /** `[n]` */
  readonly positions: Tensor<'i32'>
  readonly interleaved: boolean
}

/** The operands of `Backend.rmsNorm` beside its rows. */
export interface Norm {
  /** `[d]` */
  readonly weight: Tensor<'f32'>
  readonly eps: number
}

/** One of several products of the same rows x `[n, i]`. */
export interface LinearProduct {
  /** `[n, o]` = x · weightᵀ, or silu(x · weightᵀ) · (x · upᵀ). */
  readonly out: Tensor<'f32'>
  /** `[o, i]` */
  readonly weight: Weight
  /** `[o, i]` */
  readonly up?: Weight | undefined
}

export interface ExpertWeights {
  /** `[intermediate, hidden]` */
  readonly gate: Weight
  /** `[intermediate, hidden]` */
  readonly up: Weight
  /** `[hidden, intermediate]` */
  readonly down: Weight
}

/**
 * What a model graph needs. Every operation writes into tensors that the caller owns, returns before it has run where
 * the device is asynchronous, and takes changing values (positions, slots, lengths) from device memory.
 */
export interface Backend {
  readonly name: string

  tensor<D extends DType>(dtype: D, shape: readonly number[]): Tensor<D>
  /** A tensor of another shape over the elements of `tensor` from `offset` on. Disposing of it frees nothing. */
  view<D extends DType>(tensor: Tensor<D>, shape: readonly number[], offset?: number): Tensor<D>
  /** Copies `data` into elements `[offset, offset + data.length)`. */
  write<D extends DType>(target: Tensor<D>, data: HostArray<D>, offset?: number): void
  /** Copies the tensor to the host, once everything enqueued before has run. */
  read<D extends DType>(source: Tensor<D>): Promise<HostArray<D>>
  cache(format: CacheFormat, numBlocks: number, pageSize: number): PagedCache
  /** Takes a matrix into the precision that the backend was configured for, reading it straight into its own memory. */
  weight(source: WeightSource): Promise<Weight>
  batch(capacity: BatchCapacity): PagedBatch
  /** Records what `record` enqueues, where the backend can; otherwise absent. */
  capture?(record: () => void): StepGraph

  /** out `[n, d]` = table `[rows, d]` at ids `[n]`. */
  embed(out: Tensor<'f32'>, table: Weight, ids: Tensor<'i32'>): void
  /** out `[n, d]` = x `[m, d]` at rows `[n]`. */
  gatherRows(out: Tensor<'f32'>, x: Tensor<'f32'>, rows: Tensor<'i32'>): void
  /** out[n] = x[n] / sqrt(mean(x[n]²) + eps) · weight over rows `[n, d]`. */
  rmsNorm(out: Tensor<'f32'>, x: Tensor<'f32'>, weight: Tensor<'f32'>, eps: number): void
  /** out `[n, o]` = x `[n, i]` · weight `[o, i]`ᵀ. */
  linear(out: Tensor<'f32'>, x: Tensor<'f32'>, weight: Weight): void
  /** out `[n, h, o]` = x `[n, h, i]` · weight `[h, o, i]`ᵀ head by head. */
  headLinear(out: Tensor<'f32'>, x: Tensor<'f32'>, weight: Weight): void
  /** Copies columns: out[…, outStart + k] = x[…, xStart + k] for k < width, over rows of both. */
  copyColumns(out: Tensor<'f32'>, outStart: number, x: Tensor<'f32'>, xStart: number, width: number): void
  /**
   * Rotates columns [start, start + 2·pairs) of every row of x `[n, rows, d]` in place, by the angles of table
   * `[maxPositions, pairs, 2]` (cos, sin) at positions `[n]`. Interleaved pairs are (2j, 2j+1), half-split (j, j+pairs).
   */
  rotary(x: Tensor<'f32'>, start: number, table: Tensor<'f32'>, positions: Tensor<'i32'>, interleaved: boolean): void
  /** x += y */
  add(x: Tensor<'f32'>, y: Tensor<'f32'>): void
  /** ids `[n]` = index of the largest of each row of logits `[n, vocab]`; ties go to the lower index, NaN loses to any number. */
  argmax(ids: Tensor<'i32'>, logits: Tensor<'f32'>): void
  /**
   * ids `[n]` = a token of each row of logits `[n, vocab]`, drawn as the row of draws `[n, 6]` says (`Draw`, `packDraw`). -1 where the backend
   * leaves the row to the caller. Probabilities may be off by 1e-8. For backends whose logits are far from the caller; others may do without.
   */
  sample?(ids: Tensor<'i32'>, logits: Tensor<'f32'>, draws: Tensor<'f32'>): void
  /** out = silu(gate) · up */
  siluMul(out: Tensor<'f32'>, gate: Tensor<'f32'>, up: Tensor<'f32'>): void
  /** Chooses experts from logits `[n, experts]`: ids `[n, topK]`, weights `[n, topK]`. `bias` only for noaux_tc. */
  route(
    ids: Tensor<'i32'>,
    weights: Tensor<'f32'>,
    logits: Tensor<'f32'>,
    bias: Tensor<'f32'> | undefined,
    options: RouterOptions,
  ): void
  /** out[n] += Σ_k weights[n, k] · expert(ids[n, k])(x[n]). */
  experts(
    out: Tensor<'f32'>,
    x: Tensor<'f32'>,
    ids: Tensor<'i32'>,
    weights: Tensor<'f32'>,
    experts: readonly ExpertWeights[],
  ): void

  /** As `linear` and `add`: x `[n, o]` += y `[n, i]` · weight `[o, i]`ᵀ. This and the next three are for backends that gain by it. */
  addLinear?(x: Tensor<'f32'>, y: Tensor<'f32'>, weight: Weight): void
  /** As `linear` of x with each product's weight; with `up` as two times `linear` and `siluMul`. */
  linears?(x: Tensor<'f32'>, products: readonly LinearProduct[]): void
  /**
   * Queries as absorbed attention takes them, out `[n, h, rank + rope]` of q `[n, h, nope + rope]`: first uk `[h, rank, nope]` times the first nope
   * columns, as `headLinear`, then the others as `rotary` turns them; q stays as it is. rope = 2 · pairs of the table.
   */
  absorbQueries?(out: Tensor<'f32'>, q: Tensor<'f32'>, uk: Weight, rotation: Rotation): void
  /**
   * As `rmsNorm` of the first kvLoraRank columns of latent `[n, kvLoraRank + ropeDim]`, `rotary` of the others, both in place, and `append`.
   */
  appendLatents?(cache: PagedCache, latent: Tensor<'f32'>, norm: Norm, rotation: Rotation, slots: Tensor<'i32'>): void

  /** Writes row n of latent `[n, kvLoraRank + ropeDim]` to slot slots[n] = block · pageSize + offset; −1 writes nothing. */
  append(cache: PagedCache, latent: Tensor<'f32'>, slots: Tensor<'i32'>): void
  /** Copies slots [0, slots) of block `from` to block `to`: the copy-on-write of a forked sequence. */
  copyBlock(cache: PagedCache, from: number, to: number, slots: number): void
  /**
   * Absorbed attention: q `[t, h, kvLoraRank + ropeDim]`, out `[t, h, kvLoraRank]`, lse `[t, h]` natural log.
   * Query i of a sequence sees `seqLen − s_q + i + 1` tokens. Nothing to attend to: out 0, lse −Infinity.
   * The softmax scale is finite and > 0.
   */
  attention(
    out: Tensor<'f32'>,
    lse: Tensor<'f32'>,
    q: Tensor<'f32'>,
    cache: PagedCache,
    batch: PagedBatch,
    scale: number,
  ): void
  /**
   * Naive attention, the same function through full keys and values: q `[t, h, nope + rope]`, out `[t, h, v]`;
   * keys and values are rebuilt from the cache by kvB `[h · (nope + v), kvLoraRank]`.
   */
  naiveAttention(
    out: Tensor<'f32'>,
    q: Tensor<'f32'>,
    kvB: Weight,
    cache: PagedCache,
    batch: PagedBatch,
    scale: number,
  ): void

  dispose(): void
}
