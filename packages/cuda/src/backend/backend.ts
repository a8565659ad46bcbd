import type {
  Backend,
  BatchCapacity,
  CacheFormat,
  DType,
  ExpertWeights,
  HostArray,
  LinearProduct,
  Norm,
  PagedBatch,
  PagedCache,
  Rotation,
  RouterOptions,
  StepGraph,
  Tensor,
  Weight,
  WeightSource,
} from '@flashmla/spec'
import { check } from '@flashmla/spec'
import type { DeviceInfo } from '../driver/context'
import { fill, upload } from '../driver/copy'
import { runAttention } from './attention'
import { CudaBatch, ownBatch } from './batch'
import { CudaCache, ownCache } from './cache'
import type { BackendDevice } from './device'
import { ExpertTables, runExperts } from './experts'
import { FastAttention } from './fast-attention'
import { captureStep } from './graph'
import { absorbQueries, appendLatents, appendRows, type OwnRotation } from './latents'
import { multiply } from './linear'
import { runLinears } from './linears'
import { runNaiveAttention } from './naive-attention'
import { chooseExperts } from './route'
import * as rows from './rows'
import { Staging } from './staging'
import { CudaTensor, own } from './tensor'
import { chooseLargest, drawTokens } from './tokens'
import { CudaWeight, ownWeight, type WeightPrecision } from './weight'

type F32 = Tensor<'f32'>
type I32 = Tensor<'i32'>

/** `exact`: float32 throughout. `fast`: queries and probabilities in bf16 where the decode kernels read the cache. */
export type AttentionPrecision = 'exact' | 'fast'

/**
 * The model graph's operations on one NVIDIA device: one stream, float32 activations. Operands are checked before anything is
 * queued; ids, positions and slots are read on the device, where one that leads nowhere gives NaN or writes nothing.
 */
export class CudaBackend implements Backend {
  readonly #device: BackendDevice
  readonly #tables: ExpertTables
  readonly #staging: Staging
  readonly #fast: FastAttention

  /** @internal Made by `createCudaBackend`. */
  constructor(
    readonly name: string,
    device: BackendDevice,
    private readonly precision: WeightPrecision,
    private readonly attentionPrecision: AttentionPrecision,
  ) {
    this.#device = device
    this.#tables = new ExpertTables(device)
    this.#staging = new Staging(device)
    this.#fast = new FastAttention(device)
  }

  /** The device that it runs on. */
  get device(): DeviceInfo {
    return this.#device.context.device
  }

  /** @throws InvalidArgumentError, CudaError when there is too little memory */
  tensor<D extends DType>(dtype: D, shape: readonly number[]): Tensor<D> {
    this.#device.eager('Making a tensor')
    const tensor = new CudaTensor(this.#device, dtype, shape)
    fill(this.#device.stream, tensor.memory, 0)
    return tensor
  }

  view<D extends DType>(tensor: Tensor<D>, shape: readonly number[], offset = 0): Tensor<D> {
    return new CudaTensor(this.#device, tensor.dtype, shape, own(this.#device, tensor), offset)
  }

  write<D extends DType>(target: Tensor<D>, data: HostArray<D>, offset = 0): void {
    this.#device.eager('A write')
    const tensor = own(this.#device, target)
    void tensor.address
    check.write(target, data, offset)
    upload(this.#device.stream, tensor.memory, data, tensor.byteOffset + offset * 4)
  }

  async read<D extends DType>(source: Tensor<D>): Promise<HostArray<D>> {
    this.#device.eager('A read')
    const tensor = own(this.#device, source)
    void tensor.address
    const result = (
      source.dtype === 'f32' ? new Float32Array(tensor.size) : new Int32Array(tensor.size)
    ) as HostArray<D>
    await this.#staging.read(tensor.memory, tensor.byteOffset, result)
    return result
  }

  async weight(source: WeightSource): Promise<Weight> {
    this.#device.eager('Reading a weight')
    return CudaWeight.read(this.#device, source, this.precision)
  }

  cache(format: CacheFormat, numBlocks: number, pageSize: number): PagedCache {
    this.#device.eager('Making a cache')
    return new CudaCache(this.#device, format, numBlocks, pageSize)
  }

  batch(capacity: BatchCapacity): PagedBatch {
    this.#device.eager('Making a batch')
    return new CudaBatch(this.#device, capacity)
  }

  /**
   * Records what `record` queues; it is called twice, once to reserve work memory. Replays read what tensors, caches and batches
   * hold then. Memory is made, written and read outside.
   * @throws what `record` throws, InvalidArgumentError for calls that can't be recorded
   */
  capture(record: () => void): StepGraph {
    return captureStep(this.#device, record)
  }

  embed(out: F32, table: Weight, ids: I32): void {
    check.embed(out, table, ids)
    const weight = this.#weight(table)
    const [count, d] = table.shape as [number, number]
    rows.takeRows(this.#device, this.#f32(out), this.#i32(ids), {
      address: weight.address,
      code: weight.code,
      rows: count,
      d,
    })
  }

  gatherRows(out: F32, x: F32, at: I32): void {
    check.gatherRows(out, x, at)
    rows.takeTensorRows(this.#device, this.#f32(out), this.#f32(x), this.#i32(at))
  }

  rmsNorm(out: F32, x: F32, weight: F32, eps: number): void {
    check.rmsNorm(out, x, weight, eps)
    rows.rmsNorm(this.#device, this.#f32(out), this.#f32(x), this.#f32(weight), eps)
  }

  linear(out: F32, x: F32, weight: Weight): void {
    check.linear(out, x, weight)
    multiply(this.#device, this.#f32(out), this.#f32(x), this.#weight(weight))
  }

  headLinear(out: F32, x: F32, weight: Weight): void {
    check.headLinear(out, x, weight)
    multiply(this.#device, this.#f32(out), this.#f32(x), this.#weight(weight))
  }

  addLinear(x: F32, y: F32, weight: Weight): void {
    check.addLinear(x, y, weight)
    multiply(this.#device, this.#f32(x), this.#f32(y), this.#weight(weight), true)
  }

  linears(x: F32, products: readonly LinearProduct[]): void {
    check.linears(x, products)
    const a = this.#f32(x)
    const operands = products.map(({ out, weight, up }) => {
      return { out: this.#f32(out).address, weight: this.#weight(weight), up: up && this.#weight(up) }
    })
    const i = products[0]?.weight.shape[1]
    if (i) runLinears(this.#device, a.address, a.size / i, operands)
  }

  absorbQueries(out: F32, q: F32, uk: Weight, rotation: Rotation): void {
    check.absorbQueries(out, q, uk, rotation)
    absorbQueries(this.#device, this.#f32(out), this.#f32(q), this.#weight(uk), this.#rotation(rotation))
  }

  copyColumns(out: F32, outStart: number, x: F32, xStart: number, width: number): void {
    check.copyColumns(out, outStart, x, xStart, width)
    rows.copyColumns(this.#device, this.#f32(out), outStart, this.#f32(x), xStart, width)
  }

  rotary(x: F32, start: number, table: F32, positions: I32, interleaved: boolean): void {
    check.rotary(x, start, table, positions)
    rows.rotary(this.#device, this.#f32(x), start, this.#f32(table), this.#i32(positions), interleaved)
  }

  add(x: F32, y: F32): void {
    check.add(x, y)
    rows.add(this.#device, this.#f32(x), this.#f32(y))
  }

  siluMul(out: F32, gate: F32, up: F32): void {
    check.siluMul(out, gate, up)
    rows.siluMul(this.#device, this.#f32(out), this.#f32(gate), this.#f32(up))
  }

  argmax(ids: I32, logits: F32): void {
    check.argmax(ids, logits)
    chooseLargest(this.#device, this.#i32(ids), this.#f32(logits))
  }

  sample(ids: I32, logits: F32, draws: F32): void {
    check.sample(ids, logits, draws)
    drawTokens(this.#device, this.#i32(ids), this.#f32(logits), this.#f32(draws))
  }

  route(ids: I32, weights: F32, logits: F32, bias: F32 | undefined, options: RouterOptions): void {
    check.route(ids, weights, logits, bias, options)
    const [to, w, x] = [this.#i32(ids), this.#f32(weights), this.#f32(logits)]
    chooseExperts(this.#device, to, w, x, bias && this.#f32(bias), options)
  }

  /** @throws UnsupportedError for many tokens over more than 1024 experts */
  experts(out: F32, x: F32, ids: I32, weights: F32, experts: readonly ExpertWeights[]): void {
    check.experts(out, x, ids, weights, experts)
    runExperts(this.#device, this.#tables, {
      out: this.#f32(out),
      x: this.#f32(x),
      ids: this.#i32(ids),
      weights: this.#f32(weights),
      experts,
    })
  }

  append(cache: PagedCache, latent: F32, slots: I32): void {
    check.append(cache, latent, slots)
    appendRows(this.#device, ownCache(this.#device, cache), this.#f32(latent), this.#i32(slots))
  }

  appendLatents(cache: PagedCache, latent: F32, norm: Norm, rotation: Rotation, slots: I32): void {
    check.appendLatents(cache, latent, norm, rotation, slots)
    const [c, x] = [ownCache(this.#device, cache), this.#f32(latent)]
    const gain = { weight: this.#f32(norm.weight), eps: norm.eps }
    appendLatents(this.#device, c, x, gain, this.#rotation(rotation), this.#i32(slots))
  }

  copyBlock(cache: PagedCache, from: number, to: number, slots: number): void {
    check.copyBlock(cache, from, to, slots)
    ownCache(this.#device, cache).copyBlock(from, to, slots)
  }

  /** @throws UnsupportedError for rows wider than shared memory allows */
  attention(out: F32, lse: F32, q: F32, cache: PagedCache, batch: PagedBatch, scale: number): void {
    const [c, b] = [ownCache(this.#device, cache), ownBatch(this.#device, batch)]
    check.attention(out, lse, q, c, b.rows, scale)
    void c.address
    b.fit(c)
    const operands = { out: this.#f32(out), lse: this.#f32(lse), q: this.#f32(q), cache: c, batch: b, scale }
    if (this.attentionPrecision === 'fast' && FastAttention.takes(operands)) this.#fast.run(operands)
    else runAttention(this.#device, operands)
  }

  /** @throws UnsupportedError within a capture */
  naiveAttention(out: F32, q: F32, kvB: Weight, cache: PagedCache, batch: PagedBatch, scale: number): void {
    const [c, b] = [ownCache(this.#device, cache), ownBatch(this.#device, batch)]
    check.naiveAttention(out, q, kvB, c, b.rows, scale)
    void c.address
    b.fit(c)
    const weight = this.#weight(kvB)
    runNaiveAttention(this.#device, { out: this.#f32(out), q: this.#f32(q), kvB: weight, cache: c, batch: b, scale })
  }

  /** Waits for what is queued; every tensor, weight, cache and graph of the backend goes with it. */
  dispose(): void {
    this.#device.dispose()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #weight(weight: Weight): CudaWeight {
    return ownWeight(this.#device, weight)
  }

  #rotation({ table, positions, interleaved }: Rotation): OwnRotation {
    return { table: this.#f32(table), positions: this.#i32(positions), interleaved }
  }

  #f32(tensor: F32): CudaTensor<'f32'> {
    return own(this.#device, tensor)
  }

  #i32(tensor: I32): CudaTensor<'i32'> {
    return own(this.#device, tensor)
  }
}
