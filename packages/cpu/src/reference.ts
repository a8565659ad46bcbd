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
import { InvalidArgumentError } from '@flashmla/spec'
import { forEachSequence, softmaxInPlace } from './attention'
import { CpuBatch } from './batch'
import { CpuCache } from './cache'
import { CpuTensor, CpuWeight, f32, i32, w32 } from './memory'
import { routeToken } from './route'

/** The oracle: plain loops, float32 storage, float64 accumulation. */
export class ReferenceBackend implements Backend {
  readonly name = 'reference'

  tensor<D extends DType>(dtype: D, shape: readonly number[]): Tensor<D> {
    return new CpuTensor(dtype, shape)
  }

  view<D extends DType>(tensor: Tensor<D>, shape: readonly number[], offset = 0): Tensor<D> {
    return (tensor as CpuTensor<D>).view(shape, offset)
  }

  write<D extends DType>(target: Tensor<D>, data: HostArray<D>, offset = 0): void {
    const memory = (target as CpuTensor<D>).data
    if (offset < 0 || offset + data.length > memory.length) {
      throw new InvalidArgumentError(
        `${data.length} values at ${offset} don't fit a tensor [${target.shape}].`,
        'Write inside the tensor.',
      )
    }
    memory.set(data, offset)
  }

  async read<D extends DType>(source: Tensor<D>): Promise<HostArray<D>> {
    return (source as CpuTensor<D>).data.slice() as HostArray<D>
  }

  async weight(source: WeightSource): Promise<Weight> {
    return CpuWeight.read(source)
  }

  batch(capacity: BatchCapacity): PagedBatch {
    return new CpuBatch(capacity)
  }

  cache(format: CacheFormat, numBlocks: number, pageSize: number): PagedCache {
    return new CpuCache(format, numBlocks, pageSize)
  }

  embed(out: Tensor<'f32'>, table: Weight, ids: Tensor<'i32'>): void {
    takeRows(f32(out), w32(table), table.shape[0]!, i32(ids))
  }

  gatherRows(out: Tensor<'f32'>, x: Tensor<'f32'>, rows: Tensor<'i32'>): void {
    takeRows(f32(out), f32(x), x.shape[0]!, i32(rows))
  }

  argmax(ids: Tensor<'i32'>, logits: Tensor<'f32'>): void {
    const [n, vocab] = logits.shape as [number, number]
    for (let row = 0; row < n; row++) {
      const values = f32(logits).subarray(row * vocab, (row + 1) * vocab)
      i32(ids)[row] = values.reduce((best, value, i) => (value > values[best]! ? i : best), 0)
    }
  }

  rmsNorm(out: Tensor<'f32'>, x: Tensor<'f32'>, weight: Tensor<'f32'>, eps: number): void {
    const [o, a, w] = [f32(out), f32(x), f32(weight)]
    for (let row = 0; row < a.length; row += w.length) {
      let sum = 0
      for (let i = 0; i < w.length; i++) sum += a[row + i]! ** 2
      const scale = 1 / Math.sqrt(sum / w.length + eps)
      for (let i = 0; i < w.length; i++) o[row + i] = a[row + i]! * scale * w[i]!
    }
  }

  linear(out: Tensor<'f32'>, x: Tensor<'f32'>, weight: Weight): void {
    const [o, i] = weight.shape as [number, number]
    product(f32(out), 0, o, f32(x), 0, i, w32(weight), 0, o, i, f32(x).length / i)
  }

  headLinear(out: Tensor<'f32'>, x: Tensor<'f32'>, weight: Weight): void {
    const [h, o, i] = weight.shape as [number, number, number]
    const n = f32(x).length / (h * i)
    for (let head = 0; head < h; head++) {
      product(f32(out), head * o, h * o, f32(x), head * i, h * i, w32(weight), head * o * i, o, i, n)
    }
  }

  copyColumns(out: Tensor<'f32'>, outStart: number, x: Tensor<'f32'>, xStart: number, width: number): void {
    const [outStride, xStride] = [out.shape.at(-1)!, x.shape.at(-1)!]
    const rows = f32(x).length / xStride
    for (let r = 0; r < rows; r++) {
      f32(out).set(f32(x).subarray(r * xStride + xStart, r * xStride + xStart + width), r * outStride + outStart)
    }
  }

  rotary(x: Tensor<'f32'>, start: number, table: Tensor<'f32'>, positions: Tensor<'i32'>, interleaved: boolean): void {
    const data = f32(x)
    const pairs = table.shape[1]!
    const d = x.shape.at(-1)!
    const where = i32(positions)
    const rows = data.length / d / where.length
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
    const [a, b] = [f32(x), f32(y)]
    for (let i = 0; i < a.length; i++) a[i]! += b[i]!
  }

  siluMul(out: Tensor<'f32'>, gate: Tensor<'f32'>, up: Tensor<'f32'>): void {
    const [o, g, u] = [f32(out), f32(gate), f32(up)]
    for (let i = 0; i < o.length; i++) o[i] = (g[i]! / (1 + Math.exp(-g[i]!))) * u[i]!
  }

  route(
    ids: Tensor<'i32'>,
    weights: Tensor<'f32'>,
    logits: Tensor<'f32'>,
    bias: Tensor<'f32'> | undefined,
    options: RouterOptions,
  ): void {
    const [n, experts] = logits.shape as [number, number]
    for (let row = 0; row < n; row++) {
      const chosen = routeToken(
        Float64Array.from(f32(logits).subarray(row * experts, (row + 1) * experts)),
        bias && f32(bias),
        options,
      )
      i32(ids).set(chosen.ids, row * options.topK)
      f32(weights).set(chosen.weights, row * options.topK)
    }
  }

  experts(
    out: Tensor<'f32'>,
    x: Tensor<'f32'>,
    ids: Tensor<'i32'>,
    weights: Tensor<'f32'>,
    experts: readonly ExpertWeights[],
  ): void {
    const [n, k] = ids.shape as [number, number]
    const hidden = x.shape.at(-1)!
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
        for (let i = 0; i < inner; i++) gate[i] = (gate[i]! / (1 + Math.exp(-gate[i]!))) * up[i]!
        product(down, 0, hidden, gate, 0, inner, w32(expert.down), 0, hidden, inner, 1)
        for (let i = 0; i < hidden; i++) f32(out)[row * hidden + i]! += weight * down[i]!
      }
    }
  }

  append(cache: PagedCache, latent: Tensor<'f32'>, slots: Tensor<'i32'>): void {
    const width = latent.shape.at(-1)!
    i32(slots).forEach((slot, n) => {
      if (slot >= 0) (cache as CpuCache).write(slot, f32(latent), n * width)
    })
  }

  copyBlock(cache: PagedCache, from: number, to: number, slots: number): void {
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
    const [, h, width] = q.shape as [number, number, number]
    const rank = cache.format.kvLoraRank
    forEachSequence(cache, batch, (rows, seqLen, start, queries) => {
      const scores = new Float64Array(seqLen)
      for (let i = 0; i < queries; i++) {
        const visible = Math.max(seqLen - queries + i + 1, 0)
        for (let head = 0; head < h; head++) {
          const row = (start + i) * h + head
          for (let t = 0; t < visible; t++) scores[t] = scale * dot(f32(q), row * width, rows, t * width, width)
          f32(lse)[row] = softmaxInPlace(scores, visible)
          for (let c = 0; c < rank; c++) {
            let sum = 0
            for (let t = 0; t < visible; t++) sum += scores[t]! * rows[t * width + c]!
            f32(out)[row * rank + c] = sum
          }
        }
      }
    })
  }

  naiveAttention(
    out: Tensor<'f32'>,
    q: Tensor<'f32'>,
    kvB: Weight,
    cache: PagedCache,
    batch: PagedBatch,
    scale: number,
  ): void {
    const [, h, qk] = q.shape as [number, number, number]
    const v = out.shape.at(-1)!
    const { kvLoraRank: rank, ropeDim } = cache.format
    const nope = qk - ropeDim
    const width = rank + ropeDim
    forEachSequence(cache, batch, (rows, seqLen, start, queries) => {
      const full = new Float32Array(seqLen * h * (nope + v))
      product(full, 0, h * (nope + v), rows, 0, width, w32(kvB), 0, h * (nope + v), rank, seqLen)
      const scores = new Float64Array(seqLen)
      for (let i = 0; i < queries; i++) {
        const visible = Math.max(seqLen - queries + i + 1, 0)
        for (let head = 0; head < h; head++) {
          const row = (start + i) * h + head
          for (let t = 0; t < visible; t++) {
            const key = (t * h + head) * (nope + v)
            scores[t] =
              scale *
              (dot(f32(q), row * qk, full, key, nope) + dot(f32(q), row * qk + nope, rows, t * width + rank, ropeDim))
          }
          softmaxInPlace(scores, visible)
          for (let c = 0; c < v; c++) {
            let sum = 0
            for (let t = 0; t < visible; t++) sum += scores[t]! * full[(t * h + head) * (nope + v) + nope + c]!
            f32(out)[row * v + c] = sum
          }
        }
      }
    })
  }

  dispose(): void {}
}

function takeRows(out: Float32Array, table: Float32Array, rows: number, ids: Int32Array): void {
  const d = table.length / rows
  for (let n = 0; n < ids.length; n++) {
    const id = ids[n]!
    if (id < 0 || id >= rows) {
      throw new InvalidArgumentError(
        `Row ${id} is not in a table of ${rows}.`,
        'Use ids from 0 to one less than the number of rows.',
      )
    }
    out.set(table.subarray(id * d, (id + 1) * d), n * d)
  }
}

function dot(a: Float32Array, aStart: number, b: Float32Array, bStart: number, n: number): number {
  let sum = 0
  for (let i = 0; i < n; i++) sum += a[aStart + i]! * b[bStart + i]!
  return sum
}

/** out[r, j] = Σ x[r, k] · w[j, k] over `rows` rows, each operand with its start and row stride. */
function product(
  out: Float32Array,
  outStart: number,
  outStride: number,
  x: Float32Array,
  xStart: number,
  xStride: number,
  w: Float32Array,
  wStart: number,
  o: number,
  i: number,
  rows: number,
): void {
  for (let r = 0; r < rows; r++) {
    for (let j = 0; j < o; j++) out[outStart + r * outStride + j] = dot(x, xStart + r * xStride, w, wStart + j * i, i)
  }
}
