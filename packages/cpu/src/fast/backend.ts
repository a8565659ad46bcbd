import type {
  Backend,
  BatchCapacity,
  CacheFormat,
  DType,
  ExpertWeights,
  HostArray,
  PagedBatch,
  PagedCache,
  RouterOptions,
  Tensor,
  Weight,
  WeightSource,
} from '@flashmla/spec'
import { check } from '@flashmla/spec'
import { recordAttention, recordNaiveAttention } from './attention'
import { FastBatch } from './batch'
import { FastCache } from './cache'
import { Op } from './commands'
import { ExpertTables, recordExperts } from './experts'
import { recordLinear } from './linear'
import type { ThreadPool } from './pool'
import { recordRoute } from './route'
import {
  recordAdd,
  recordArgmax,
  recordCopyColumns,
  recordEmbed,
  recordGatherRows,
  recordRmsNorm,
  recordRotary,
  recordSiluMul,
  writeWords,
} from './rows'
import { FastTensor } from './tensor'
import type { QuantizationError, WeightPrecision } from './weight'
import { FastWeight } from './weight'

type F32 = FastTensor<'f32'>
type I32 = FastTensor<'i32'>

/** The fast backend's own properties, besides those of every backend. */
export interface CpuBackend extends Backend {
  readonly threads: number
  /** What quantization did to each weight loaded so far; empty but for `weights: 'q8'`. */
  readonly quantizationErrors: readonly QuantizationError[]
  /** Ends the threads and waits until they have. */
  [Symbol.asyncDispose](): Promise<void>
}

/** WebAssembly SIMD kernels on several threads. Operations are recorded, and run when something is read. */
export class FastCpuBackend implements CpuBackend {
  readonly #experts: ExpertTables
  readonly #errors: QuantizationError[] = []

  /** Made by `createCpuBackend`. */
  constructor(
    readonly name: string,
    private readonly pool: ThreadPool,
    private readonly precision: WeightPrecision,
  ) {
    this.#experts = new ExpertTables(pool)
  }

  get threads(): number {
    return this.pool.threads
  }

  get quantizationErrors(): readonly QuantizationError[] {
    return this.#errors
  }

  tensor<D extends DType>(dtype: D, shape: readonly number[]): Tensor<D> {
    this.pool.alive()
    return new FastTensor(this.pool.heap, dtype, shape)
  }

  view<D extends DType>(tensor: Tensor<D>, shape: readonly number[], offset = 0): Tensor<D> {
    return new FastTensor(this.pool.heap, tensor.dtype, shape, tensor as FastTensor<D>, offset)
  }

  write<D extends DType>(target: Tensor<D>, data: HostArray<D>, offset = 0): void {
    this.pool.alive()
    check.write(target, data, offset)
    writeWords(this.pool, (target as FastTensor<D>).address + offset * 4, data)
  }

  async read<D extends DType>(source: Tensor<D>): Promise<HostArray<D>> {
    const { data } = source as FastTensor<D>
    // Made before the flush: the workers are busy while its pages are given.
    const copy = (source.dtype === 'f32' ? new Float32Array(data.length) : new Int32Array(data.length)).fill(0)
    this.pool.flush()
    copy.set(data)
    return copy as HostArray<D>
  }

  async weight(source: WeightSource): Promise<Weight> {
    this.pool.flush()
    return FastWeight.read(this.pool.heap, this.pool.kernels, source, this.precision, (error) =>
      this.#errors.push(error),
    )
  }

  cache(format: CacheFormat, numBlocks: number, pageSize: number): PagedCache {
    this.pool.flush()
    return new FastCache(this.pool.heap, format, numBlocks, pageSize)
  }

  batch(capacity: BatchCapacity): PagedBatch {
    this.pool.alive()
    return new FastBatch(this.pool, capacity)
  }

  embed(out: Tensor<'f32'>, table: Weight, ids: Tensor<'i32'>): void {
    check.embed(out, table, ids)
    recordEmbed(this.pool, out as F32, table as FastWeight, ids as I32)
  }

  gatherRows(out: Tensor<'f32'>, x: Tensor<'f32'>, rows: Tensor<'i32'>): void {
    check.gatherRows(out, x, rows)
    recordGatherRows(this.pool, out as F32, x as F32, rows as I32)
  }

  rmsNorm(out: Tensor<'f32'>, x: Tensor<'f32'>, weight: Tensor<'f32'>, eps: number): void {
    check.rmsNorm(out, x, weight, eps)
    recordRmsNorm(this.pool, out as F32, x as F32, weight as F32, eps)
  }

  linear(out: Tensor<'f32'>, x: Tensor<'f32'>, weight: Weight): void {
    check.linear(out, x, weight)
    const [o, a, w] = [out as F32, x as F32, weight as FastWeight]
    recordLinear(this.pool, o.address, a.address, w, 1, a.size / w.i)
  }

  headLinear(out: Tensor<'f32'>, x: Tensor<'f32'>, weight: Weight): void {
    check.headLinear(out, x, weight)
    const [o, a, w] = [out as F32, x as F32, weight as FastWeight]
    const heads = w.shape[0]!
    recordLinear(this.pool, o.address, a.address, w, heads, a.size / (heads * w.i))
  }

  copyColumns(out: Tensor<'f32'>, outStart: number, x: Tensor<'f32'>, xStart: number, width: number): void {
    check.copyColumns(out, outStart, x, xStart, width)
    recordCopyColumns(this.pool, out as F32, outStart, x as F32, xStart, width)
  }

  rotary(x: Tensor<'f32'>, start: number, table: Tensor<'f32'>, positions: Tensor<'i32'>, interleaved: boolean): void {
    check.rotary(x, start, table, positions)
    recordRotary(this.pool, x as F32, start, table as F32, positions as I32, interleaved)
  }

  add(x: Tensor<'f32'>, y: Tensor<'f32'>): void {
    check.add(x, y)
    recordAdd(this.pool, x as F32, y as F32)
  }

  siluMul(out: Tensor<'f32'>, gate: Tensor<'f32'>, up: Tensor<'f32'>): void {
    check.siluMul(out, gate, up)
    recordSiluMul(this.pool, out as F32, gate as F32, up as F32)
  }

  argmax(ids: Tensor<'i32'>, logits: Tensor<'f32'>): void {
    check.argmax(ids, logits)
    recordArgmax(this.pool, ids as I32, logits as F32)
  }

  route(
    ids: Tensor<'i32'>,
    weights: Tensor<'f32'>,
    logits: Tensor<'f32'>,
    bias: Tensor<'f32'> | undefined,
    options: RouterOptions,
  ): void {
    check.route(ids, weights, logits, bias, options)
    recordRoute(this.pool, ids as I32, weights as F32, logits as F32, bias as F32 | undefined, options)
  }

  experts(
    out: Tensor<'f32'>,
    x: Tensor<'f32'>,
    ids: Tensor<'i32'>,
    weights: Tensor<'f32'>,
    experts: readonly ExpertWeights[],
  ): void {
    check.experts(out, x, ids, weights, experts)
    recordExperts(this.pool, this.#experts, out as F32, x as F32, ids as I32, weights as F32, experts)
  }

  append(cache: PagedCache, latent: Tensor<'f32'>, slots: Tensor<'i32'>): void {
    check.append(cache, latent, slots)
    const [c, x, at] = [cache as FastCache, latent as F32, slots as I32]
    this.pool.commands
      .begin(Op.append, at.size, x.size)
      .int(0, c.descriptor)
      .int(1, x.address)
      .int(2, at.address)
      .reads(x.address, x.bytes)
      .reads(at.address, at.bytes)
      .writes(c.data, c.bytes)
      .end()
  }

  copyBlock(cache: PagedCache, from: number, to: number, slots: number): void {
    check.copyBlock(cache, from, to, slots)
    const c = cache as FastCache
    this.pool.commands
      .begin(Op.copyBlock, 1, 0)
      .int(0, c.descriptor)
      .int(1, from)
      .int(2, to)
      .int(3, slots)
      .writes(c.data, c.bytes)
      .end()
  }

  attention(
    out: Tensor<'f32'>,
    lse: Tensor<'f32'>,
    q: Tensor<'f32'>,
    cache: PagedCache,
    batch: PagedBatch,
    scale: number,
  ): void {
    check.attention(out, lse, q, cache, (batch as FastBatch).rows, scale)
    recordAttention(this.pool, out as F32, lse as F32, q as F32, cache as FastCache, batch as FastBatch, scale)
  }

  naiveAttention(
    out: Tensor<'f32'>,
    q: Tensor<'f32'>,
    kvB: Weight,
    cache: PagedCache,
    batch: PagedBatch,
    scale: number,
  ): void {
    check.naiveAttention(out, q, kvB, cache, (batch as FastBatch).rows, scale)
    recordNaiveAttention(
      this.pool,
      out as F32,
      q as F32,
      kvB as FastWeight,
      cache as FastCache,
      batch as FastBatch,
      scale,
      (to, from, weight, n) => recordLinear(this.pool, to, from, weight, 1, n),
    )
  }

  /** Ends the threads; every tensor, weight and cache of the backend goes with it. */
  dispose(): void {
    void this.pool.dispose()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.pool.dispose()
  }
}
