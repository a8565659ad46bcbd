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
import { check, DisposedError, UnsupportedError } from '@flashmla/spec'
import { recordAttention, recordNaiveAttention } from './attention'
import { FastBatch } from './batch'
import { FastCache } from './cache'
import { Op } from './commands'
import { ExpertTables, recordExperts } from './experts'
import { recordLinear } from './linear'
import type { ThreadPool } from './pool'
import { FastTensor } from './tensor'
import type { QuantizationError, WeightPrecision } from './weight'
import { FastWeight } from './weight'

type F32 = FastTensor<'f32'>
type I32 = FastTensor<'i32'>

/** Rows and elements of a task, of wasm/rows.c. */
const ROWS = 8
const ELEMENTS = 16384
const MAX_EXPERTS = 1024

const methods = { greedy: 0, group_limited_greedy: 1, noaux_tc: 2 } as const

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
    this.#alive()
    return new FastTensor(this.pool.heap, dtype, shape)
  }

  view<D extends DType>(tensor: Tensor<D>, shape: readonly number[], offset = 0): Tensor<D> {
    return new FastTensor(this.pool.heap, tensor.dtype, shape, tensor as FastTensor<D>, offset)
  }

  write<D extends DType>(target: Tensor<D>, data: HostArray<D>, offset = 0): void {
    this.#alive()
    const { pool } = this
    const tensor = target as FastTensor<D>
    check.write(target, data, offset)
    const address = tensor.address + offset * 4
    const bytes = data.length * 4
    const memory = () => (data instanceof Float32Array ? pool.heap.f32 : pool.heap.i32)
    if (pool.commands.count === 0 || !pool.canStage(bytes)) {
      pool.flush()
      memory().set(data, address / 4)
      return
    }
    const command = pool.commands.begin(Op.copy, Math.ceil(data.length / ELEMENTS), data.length)
    const staged = pool.stage(bytes)
    memory().set(data, staged / 4)
    command.int(0, address).int(1, staged).int(23, data.length).writes(address, bytes).end()
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
    this.#alive()
    return new FastBatch(this.pool, capacity)
  }

  embed(out: Tensor<'f32'>, table: Weight, ids: Tensor<'i32'>): void {
    check.embed(out, table, ids)
    const [o, w, rows] = [out as F32, table as FastWeight, ids as I32]
    this.#rows(Op.embed, rows.size, rows.size * w.i)
      .int(0, o.address)
      .int(1, w.descriptor)
      .int(2, rows.address)
      .reads(rows.address, rows.bytes)
      .writes(o.address, o.bytes)
      .end()
  }

  gatherRows(out: Tensor<'f32'>, x: Tensor<'f32'>, rows: Tensor<'i32'>): void {
    check.gatherRows(out, x, rows)
    const [o, a, at] = [out as F32, x as F32, rows as I32]
    const d = a.shape.at(-1)!
    this.#rows(Op.gather, at.size, at.size * d)
      .int(0, o.address)
      .int(1, a.address)
      .int(2, at.address)
      .int(3, d)
      .int(4, d === 0 ? 0 : a.size / d)
      .reads(a.address, a.bytes)
      .reads(at.address, at.bytes)
      .writes(o.address, o.bytes)
      .end()
  }

  rmsNorm(out: Tensor<'f32'>, x: Tensor<'f32'>, weight: Tensor<'f32'>, eps: number): void {
    check.rmsNorm(out, x, weight, eps)
    const [o, a, w] = [out as F32, x as F32, weight as F32]
    this.#rows(Op.rmsNorm, a.size / w.size, a.size)
      .int(0, o.address)
      .int(1, a.address)
      .int(2, w.address)
      .int(3, w.size)
      .float(4, eps)
      .reads(a.address, a.bytes)
      .reads(w.address, w.bytes)
      .writes(o.address, o.bytes)
      .end()
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
    const [o, a] = [out as F32, x as F32]
    const stride = a.shape.at(-1)!
    const rows = a.size / stride
    this.#rows(Op.copyColumns, rows, rows * width)
      .int(0, o.address + outStart * 4)
      .int(1, o.shape.at(-1)!)
      .int(2, a.address + xStart * 4)
      .int(3, stride)
      .int(4, width)
      .reads(a.address, a.bytes)
      .writes(o.address, o.bytes)
      .end()
  }

  rotary(x: Tensor<'f32'>, start: number, table: Tensor<'f32'>, positions: Tensor<'i32'>, interleaved: boolean): void {
    check.rotary(x, start, table, positions)
    const [a, angles, at] = [x as F32, table as F32, positions as I32]
    if (at.size === 0) return
    const d = a.shape.at(-1)!
    const rows = a.size / d
    this.#rows(Op.rotary, rows, rows * angles.shape[1]! * 8)
      .int(0, a.address + start * 4)
      .int(1, d)
      .int(2, angles.address)
      .int(3, at.address)
      .int(4, angles.shape[1]!)
      .int(5, interleaved ? 1 : 0)
      .int(6, rows / at.size)
      .reads(angles.address, angles.bytes)
      .reads(at.address, at.bytes)
      .writes(a.address, a.bytes)
      .end()
  }

  add(x: Tensor<'f32'>, y: Tensor<'f32'>): void {
    check.add(x, y)
    const [a, b] = [x as F32, y as F32]
    this.pool.commands
      .begin(Op.add, Math.ceil(a.size / ELEMENTS), a.size)
      .int(0, a.address)
      .int(1, b.address)
      .int(23, a.size)
      .reads(b.address, b.bytes)
      .writes(a.address, a.bytes)
      .end()
  }

  siluMul(out: Tensor<'f32'>, gate: Tensor<'f32'>, up: Tensor<'f32'>): void {
    check.siluMul(out, gate, up)
    const [o, g, u] = [out as F32, gate as F32, up as F32]
    this.pool.commands
      .begin(Op.silu, Math.ceil(o.size / ELEMENTS), o.size * 8)
      .int(0, o.address)
      .int(1, g.address)
      .int(2, u.address)
      .int(23, o.size)
      .reads(g.address, g.bytes)
      .reads(u.address, u.bytes)
      .writes(o.address, o.bytes)
      .end()
  }

  argmax(ids: Tensor<'i32'>, logits: Tensor<'f32'>): void {
    check.argmax(ids, logits)
    const [o, a] = [ids as I32, logits as F32]
    const vocab = a.shape.at(-1)!
    this.#rows(Op.argmax, o.size, a.size)
      .int(0, o.address)
      .int(1, a.address)
      .int(2, vocab)
      .reads(a.address, a.bytes)
      .writes(o.address, o.bytes)
      .end()
  }

  route(
    ids: Tensor<'i32'>,
    weights: Tensor<'f32'>,
    logits: Tensor<'f32'>,
    bias: Tensor<'f32'> | undefined,
    options: RouterOptions,
  ): void {
    check.route(ids, weights, logits, bias, options)
    const experts = logits.shape.at(-1)!
    if (experts > MAX_EXPERTS)
      throw new UnsupportedError(`${experts} experts have no CPU kernel.`, `Up to ${MAX_EXPERTS} are taken.`)
    const [to, w, x, b] = [ids as I32, weights as F32, logits as F32, bias as F32 | undefined]
    const command = this.pool.commands
      .begin(Op.route, x.size / experts, x.size * 32)
      .int(0, to.address)
      .int(1, w.address)
      .int(2, x.address)
      .int(3, b ? b.address : 0)
      .int(4, experts)
      .int(5, options.topK)
      .int(6, options.scoring === 'sigmoid' ? 1 : 0)
      .int(7, methods[options.method])
      .int(8, options.numGroups)
      .int(9, options.topkGroups)
      .int(10, options.normalize ? 1 : 0)
      .float(11, options.scale)
      .reads(x.address, x.bytes)
      .writes(to.address, to.bytes)
      .writes(w.address, w.bytes)
    if (b) command.reads(b.address, b.bytes)
    command.end()
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

  #rows(op: number, rows: number, work: number) {
    this.#alive()
    return this.pool.commands.begin(op, Math.ceil(rows / ROWS), work).int(23, rows)
  }

  #alive(): void {
    if (this.pool.disposed) throw new DisposedError('The CPU backend')
  }
}
