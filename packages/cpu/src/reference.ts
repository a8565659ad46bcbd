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
import { check, DisposedError, DRAW_COLUMNS } from '@flashmla/spec'
import { attend, attendNaively, queryRows } from './attention'
import { CpuBatch } from './batch'
import { CpuCache } from './cache'
import { drawToken } from './draw'
import { checkRow, product, siluMul, takeRows } from './loops'
import { CpuTensor, CpuWeight, f32, i32, w32 } from './memory'
import { routeToken } from './route'

/**
 * The oracle: plain loops, float32 storage, float64 accumulation, every cache format. Each operation checks its operands
 * and the values that lead into memory (ids, slots, positions) before it writes anything.
 * Every method throws InvalidArgumentError on operands that don't fit and DisposedError on ones that are gone.
 */
export class ReferenceBackend implements Backend {
  readonly name = 'reference'
  #disposed = false

  tensor<D extends DType>(dtype: D, shape: readonly number[]): Tensor<D> {
    this.#alive()
    return new CpuTensor(dtype, shape)
  }

  view<D extends DType>(tensor: Tensor<D>, shape: readonly number[], offset = 0): Tensor<D> {
    return (tensor as CpuTensor<D>).view(shape, offset)
  }

  write<D extends DType>(target: Tensor<D>, data: HostArray<D>, offset = 0): void {
    const memory = (target as CpuTensor<D>).data
    check.write(target, data, offset)
    memory.set(data, offset)
  }

  async read<D extends DType>(source: Tensor<D>): Promise<HostArray<D>> {
    return (source as CpuTensor<D>).data.slice() as HostArray<D>
  }

  async weight(source: WeightSource): Promise<Weight> {
    this.#alive()
    return CpuWeight.read(source)
  }

  batch(capacity: BatchCapacity): PagedBatch {
    this.#alive()
    return new CpuBatch(capacity)
  }

  cache(format: CacheFormat, numBlocks: number, pageSize: number): PagedCache {
    this.#alive()
    return new CpuCache(format, numBlocks, pageSize)
  }

  embed(out: Tensor<'f32'>, table: Weight, ids: Tensor<'i32'>): void {
    check.embed(out, table, ids)
    takeRows(f32(out), w32(table), table.shape[0]!, i32(ids))
  }

  gatherRows(out: Tensor<'f32'>, x: Tensor<'f32'>, rows: Tensor<'i32'>): void {
    check.gatherRows(out, x, rows)
    takeRows(f32(out), f32(x), f32(x).length / x.shape.at(-1)!, i32(rows))
  }

  argmax(ids: Tensor<'i32'>, logits: Tensor<'f32'>): void {
    check.argmax(ids, logits)
    const [values, chosen] = [f32(logits), i32(ids)]
    const vocab = logits.shape.at(-1)!
    for (let row = 0; row < chosen.length; row++) {
      let best = 0
      for (let i = 1; i < vocab; i++) {
        const [value, leader] = [values[row * vocab + i]!, values[row * vocab + best]!]
        if (value > leader || (Number.isNaN(leader) && !Number.isNaN(value))) best = i
      }
      chosen[row] = best
    }
  }

  sample(ids: Tensor<'i32'>, logits: Tensor<'f32'>, draws: Tensor<'f32'>): void {
    check.sample(ids, logits, draws)
    const [values, given, chosen] = [f32(logits), f32(draws), i32(ids)]
    const vocab = logits.shape.at(-1)!
    for (let row = 0; row < chosen.length; row++) {
      const draw = given.subarray(row * DRAW_COLUMNS, (row + 1) * DRAW_COLUMNS)
      chosen[row] = drawToken(values.subarray(row * vocab, (row + 1) * vocab), draw)
    }
  }

  rmsNorm(out: Tensor<'f32'>, x: Tensor<'f32'>, weight: Tensor<'f32'>, eps: number): void {
    check.rmsNorm(out, x, weight, eps)
    const [o, a, w] = [f32(out), f32(x), f32(weight)]
    for (let row = 0; row < a.length; row += w.length) {
      let sum = 0
      for (let i = 0; i < w.length; i++) sum += a[row + i]! ** 2
      const scale = 1 / Math.sqrt(sum / w.length + eps)
      for (let i = 0; i < w.length; i++) o[row + i] = a[row + i]! * scale * w[i]!
    }
  }

  linear(out: Tensor<'f32'>, x: Tensor<'f32'>, weight: Weight): void {
    check.linear(out, x, weight)
    const [o, i] = weight.shape as [number, number]
    product(f32(out), 0, o, f32(x), 0, i, w32(weight), 0, o, i, f32(x).length / i)
  }

  headLinear(out: Tensor<'f32'>, x: Tensor<'f32'>, weight: Weight): void {
    check.headLinear(out, x, weight)
    const [h, o, i] = weight.shape as [number, number, number]
    const n = f32(x).length / (h * i)
    for (let head = 0; head < h; head++) {
      product(f32(out), head * o, h * o, f32(x), head * i, h * i, w32(weight), head * o * i, o, i, n)
    }
  }

  copyColumns(out: Tensor<'f32'>, outStart: number, x: Tensor<'f32'>, xStart: number, width: number): void {
    check.copyColumns(out, outStart, x, xStart, width)
    const [outStride, xStride] = [out.shape.at(-1)!, x.shape.at(-1)!]
    const rows = f32(x).length / xStride
    for (let r = 0; r < rows; r++) {
      f32(out).set(f32(x).subarray(r * xStride + xStart, r * xStride + xStart + width), r * outStride + outStart)
    }
  }

  rotary(x: Tensor<'f32'>, start: number, table: Tensor<'f32'>, positions: Tensor<'i32'>, interleaved: boolean): void {
    check.rotary(x, start, table, positions)
    const data = f32(x)
    const pairs = table.shape[1]!
    const d = x.shape.at(-1)!
    const where = i32(positions)
    const rows = data.length / d / where.length
    for (const position of where) checkRow('Position', position, table.shape[0]!, 'rotary table')
    for (let n = 0; n < where.length; n++) {
      for (let r = 0; r < rows; r++) {
        const base = (n * rows + r) * d + start
        for (let j = 0; j < pairs; j++) {
          const cos = f32(table)[(where[n]! * pairs + j) * 2]!
          const sin = f32(table)[(where[n]! * pairs + j) * 2 + 1]!
          const [a, b] = interleaved ? [base + 2 * j, base + 2 * j + 1] : [base + j, base + j + pairs]
          const [u, v] = [data[a]!, data[b]!]
          data[a] = u * cos - v * sin
          data[b] = v * cos + u * sin
        }
      }
    }
  }

  add(x: Tensor<'f32'>, y: Tensor<'f32'>): void {
    check.add(x, y)
    const [a, b] = [f32(x), f32(y)]
    for (let i = 0; i < a.length; i++) a[i]! += b[i]!
  }

  siluMul(out: Tensor<'f32'>, gate: Tensor<'f32'>, up: Tensor<'f32'>): void {
    check.siluMul(out, gate, up)
    siluMul(f32(out), f32(gate), f32(up))
  }

  route(
    ids: Tensor<'i32'>,
    weights: Tensor<'f32'>,
    logits: Tensor<'f32'>,
    bias: Tensor<'f32'> | undefined,
    options: RouterOptions,
  ): void {
    check.route(ids, weights, logits, bias, options)
    const [chosenIds, chosenWeights, values] = [i32(ids), f32(weights), f32(logits)]
    const experts = logits.shape.at(-1)!
    for (let row = 0; row < values.length / experts; row++) {
      const chosen = routeToken(
        Float64Array.from(values.subarray(row * experts, (row + 1) * experts)),
        bias && f32(bias),
        options,
      )
      chosenIds.set(chosen.ids, row * options.topK)
      chosenWeights.set(chosen.weights, row * options.topK)
    }
  }

  experts(
    out: Tensor<'f32'>,
    x: Tensor<'f32'>,
    ids: Tensor<'i32'>,
    weights: Tensor<'f32'>,
    experts: readonly ExpertWeights[],
  ): void {
    check.experts(out, x, ids, weights, experts)
    const hidden = x.shape.at(-1)!
    const n = f32(x).length / hidden
    const k = ids.shape.at(-1)!
    for (const id of i32(ids)) checkRow('Expert', id, experts.length, 'mixture')
    const result = Float64Array.from(f32(out))
    for (let row = 0; row < n; row++) {
      for (let choice = 0; choice < k; choice++) {
        const expert = experts[i32(ids)[row * k + choice]!]!
        const weight = f32(weights)[row * k + choice]!
        const inner = expert.gate.shape[0]!
        const gate = new Float32Array(inner)
        const up = new Float32Array(inner)
        const down = new Float32Array(hidden)
        product(gate, 0, inner, f32(x), row * hidden, hidden, w32(expert.gate), 0, inner, hidden, 1)
        product(up, 0, inner, f32(x), row * hidden, hidden, w32(expert.up), 0, inner, hidden, 1)
        siluMul(gate, gate, up)
        product(down, 0, hidden, gate, 0, inner, w32(expert.down), 0, hidden, inner, 1)
        for (let i = 0; i < hidden; i++) result[row * hidden + i]! += weight * down[i]!
      }
    }
    f32(out).set(result)
  }

  append(cache: PagedCache, latent: Tensor<'f32'>, slots: Tensor<'i32'>): void {
    check.append(cache, latent, slots)
    const target = cache as CpuCache
    const width = latent.shape.at(-1)!
    const rows = f32(latent)
    for (const slot of i32(slots)) target.checkSlot(slot)
    i32(slots).forEach((slot, n) => {
      if (slot >= 0) target.write(slot, rows, n * width)
    })
  }

  copyBlock(cache: PagedCache, from: number, to: number, slots: number): void {
    check.copyBlock(cache, from, to, slots)
    ;(cache as CpuCache).copy(from, to, slots)
  }

  attention(
    out: Tensor<'f32'>,
    lse: Tensor<'f32'>,
    q: Tensor<'f32'>,
    cache: PagedCache,
    batch: PagedBatch,
    scale: number,
  ): void {
    check.attention(out, lse, q, cache, queryRows(batch), scale)
    attend(out, lse, q, cache, batch, scale)
  }

  naiveAttention(
    out: Tensor<'f32'>,
    q: Tensor<'f32'>,
    kvB: Weight,
    cache: PagedCache,
    batch: PagedBatch,
    scale: number,
  ): void {
    check.naiveAttention(out, q, kvB, cache, queryRows(batch), scale)
    attendNaively(out, q, kvB, cache, batch, scale)
  }

  dispose(): void {
    this.#disposed = true
  }

  #alive(): void {
    if (this.#disposed) throw new DisposedError('The reference backend')
  }
}
