import type { ExpertWeights, LinearProduct, Norm, Rotation, RouterOptions } from './backend'
import type { PagedCache } from './cache-format'
import { DRAW_COLUMNS } from './draw'
import { InvalidArgumentError } from './errors'
import type { Tensor, Weight } from './tensor'
import { sizeOf } from './tensor'

type F32 = Tensor<'f32'>
type I32 = Tensor<'i32'>
type Shaped = { readonly shape: readonly number[] }

/**
 * The shape rules of every operation of `Backend`, for a backend to call before it touches anything.
 * Leading dimensions fold: a tensor `[n, h, d]` serves as `[n · h, d]` where an operation goes row by row.
 * @throws InvalidArgumentError naming the operation and the shapes
 */
export const check = {
  write(target: Tensor, data: Float32Array | Int32Array, offset: number): void {
    if (!(data instanceof (target.dtype === 'f32' ? Float32Array : Int32Array)))
      throw new InvalidArgumentError(
        `Values of another type are written to an ${target.dtype} tensor.`,
        'Write a Float32Array to f32 and an Int32Array to i32.',
      )
    if (!Number.isInteger(offset) || offset < 0 || offset + data.length > sizeOf(target.shape))
      throw new InvalidArgumentError(
        `${data.length} values at ${offset} don't fit a tensor [${target.shape}].`,
        'Write inside the tensor.',
      )
  },
  embed(out: F32, table: Weight, ids: I32): void {
    dtypes('embed', { out }, { ids })
    matrix('embed', 'table', table, 2)
    demand(sizeOf(out.shape) === sizeOf(ids.shape) * last(table), 'embed', { out, table, ids })
  },
  gatherRows(out: F32, x: F32, rows: I32): void {
    dtypes('gatherRows', { out, x }, { rows })
    demand(last(out) === last(x) && rowsOf(out) === sizeOf(rows.shape), 'gatherRows', { out, x, rows })
  },
  rmsNorm(out: F32, x: F32, weight: F32, eps: number): void {
    dtypes('rmsNorm', { out, x, weight }, {})
    demand(same(out, x) && last(x) === sizeOf(weight.shape), 'rmsNorm', { out, x, weight })
    epsilon('rmsNorm', eps)
  },
  linear(out: F32, x: F32, weight: Weight): void {
    dtypes('linear', { out, x }, {})
    matrix('linear', 'weight', weight, 2)
    demand(multiplies(out, x, weight), 'linear', { out, x, weight })
  },
  headLinear(out: F32, x: F32, weight: Weight): void {
    dtypes('headLinear', { out, x }, {})
    matrix('headLinear', 'weight', weight, 3)
    const [h, o, i] = weight.shape as [number, number, number]
    const [xs, os] = [sizeOf(x.shape), sizeOf(out.shape)]
    demand(xs % (h * i) === 0 && os === (xs / (h * i)) * h * o, 'headLinear', { out, x, weight })
  },
  copyColumns(out: F32, outStart: number, x: F32, xStart: number, width: number): void {
    dtypes('copyColumns', { out, x }, {})
    demand(rowsOf(out) === rowsOf(x), 'copyColumns', { out, x })
    columns('copyColumns', out, outStart, width)
    columns('copyColumns', x, xStart, width)
  },
  rotary(x: F32, start: number, table: F32, positions: I32): void {
    dtypes('rotary', { x, table }, { positions })
    matrix('rotary', 'table', table, 3)
    const n = sizeOf(positions.shape)
    demand(table.shape[2] === 2 && (n === 0 ? sizeOf(x.shape) === 0 : rowsOf(x) % n === 0), 'rotary', {
      x,
      table,
      positions,
    })
    columns('rotary', x, start, 2 * table.shape[1]!)
  },
  add(x: F32, y: F32): void {
    dtypes('add', { x, y }, {})
    demand(same(x, y), 'add', { x, y })
  },
  siluMul(out: F32, gate: F32, up: F32): void {
    dtypes('siluMul', { out, gate, up }, {})
    demand(same(out, gate) && same(gate, up), 'siluMul', { out, gate, up })
  },
  argmax(ids: I32, logits: F32): void {
    dtypes('argmax', { logits }, { ids })
    demand(last(logits) > 0 && rowsOf(logits) === sizeOf(ids.shape), 'argmax', { ids, logits })
  },
  sample(ids: I32, logits: F32, draws: F32): void {
    dtypes('sample', { logits, draws }, { ids })
    const n = sizeOf(ids.shape)
    const fits = last(logits) > 0 && rowsOf(logits) === n && last(draws) === DRAW_COLUMNS && rowsOf(draws) === n
    demand(fits, 'sample', { ids, logits, draws })
  },
  route(ids: I32, weights: F32, logits: F32, bias: F32 | undefined, options: RouterOptions): void {
    dtypes('route', bias ? { weights, logits, bias } : { weights, logits }, { ids })
    const { topK, numGroups, topkGroups, method } = options
    const experts = last(logits)
    demand(
      sizeOf(ids.shape) === rowsOf(logits) * topK && same(ids, weights) && (!bias || sizeOf(bias.shape) === experts),
      'route',
      bias ? { ids, weights, logits, bias } : { ids, weights, logits },
    )
    const grouped = method !== 'greedy' && numGroups > 1
    const pool = grouped ? (experts / numGroups) * topkGroups : experts
    const whole = [topK, numGroups, topkGroups].every((value) => Number.isInteger(value) && value >= 1)
    if (!whole || (grouped && (experts % numGroups !== 0 || topkGroups > numGroups)) || topK > pool) {
      throw new InvalidArgumentError(
        `route: top ${topK} of ${experts} experts in ${topkGroups} of ${numGroups} groups (${method}) can't be chosen.`,
        'Groups divide the experts evenly, and the chosen groups hold at least topK experts.',
      )
    }
  },
  experts(out: F32, x: F32, ids: I32, weights: F32, experts: readonly ExpertWeights[]): void {
    dtypes('experts', { out, x, weights }, { ids })
    demand(same(out, x) && same(ids, weights) && rowsOf(ids) === rowsOf(x), 'experts', { out, x, ids, weights })
    if (experts.length === 0 && sizeOf(ids.shape) > 0)
      throw new InvalidArgumentError('experts: there is no expert to choose.', 'Give the experts that the ids name.')
    const [inner, hidden] = experts[0]?.gate.shape ?? []
    for (const { gate, up, down } of experts) {
      const fits = gate.shape[0] === inner && hidden === last(x) && down.shape[0] === hidden && down.shape[1] === inner
      // No object for each of many experts that fit.
      if (!(fits && gate.shape[1] === hidden && same(gate, up))) demand(false, 'experts', { x, gate, up, down })
    }
  },
  addLinear(x: F32, y: F32, weight: Weight): void {
    dtypes('addLinear', { x, y }, {})
    matrix('addLinear', 'weight', weight, 2)
    demand(multiplies(x, y, weight), 'addLinear', { x, y, weight })
  },
  linears(x: F32, products: readonly LinearProduct[]): void {
    for (const { out, weight, up } of products) {
      dtypes('linears', { out, x }, {})
      matrix('linears', 'weight', weight, 2)
      if (multiplies(out, x, weight) && (!up || same(weight, up))) continue
      demand(false, 'linears', up ? { out, x, weight, up } : { out, x, weight })
    }
  },
  absorbQueries(out: F32, q: F32, uk: Weight, { table, positions }: Rotation): void {
    dtypes('absorbQueries', { out, q, table }, { positions })
    matrix('absorbQueries', 'uk', uk, 3)
    matrix('absorbQueries', 'table', table, 3)
    const [h, rank, nope] = uk.shape as [number, number, number]
    const [rope, rows] = [2 * table.shape[1]!, sizeOf(positions.shape) * h]
    const fits = sizeOf(q.shape) === rows * (nope + rope) && sizeOf(out.shape) === rows * (rank + rope)
    demand(fits && table.shape[2] === 2, 'absorbQueries', { out, q, uk, table, positions })
  },
  appendLatents(cache: PagedCache, latent: F32, norm: Norm, { table, positions }: Rotation, slots: I32): void {
    dtypes('appendLatents', { latent, norm: norm.weight, table }, { positions, slots })
    matrix('appendLatents', 'table', table, 3)
    const { kvLoraRank, ropeDim } = cache.format
    const n = sizeOf(slots.shape)
    const fits = last(latent) === kvLoraRank + ropeDim && rowsOf(latent) === n && sizeOf(positions.shape) === n
    const turned = 2 * table.shape[1]! === ropeDim && table.shape[2] === 2
    demand(fits && turned && sizeOf(norm.weight.shape) === kvLoraRank, `appendLatents to ${cache.format.name}`, {
      latent,
      norm: norm.weight,
      table,
      positions,
      slots,
    })
    epsilon('appendLatents', norm.eps)
  },
  append(cache: PagedCache, latent: F32, slots: I32): void {
    dtypes('append', { latent }, { slots })
    const width = cache.format.kvLoraRank + cache.format.ropeDim
    demand(last(latent) === width && rowsOf(latent) === sizeOf(slots.shape), `append to ${cache.format.name}`, {
      latent,
      slots,
    })
  },
  copyBlock(cache: PagedCache, from: number, to: number, slots: number): void {
    const inside = (block: number) => Number.isInteger(block) && block >= 0 && block < cache.numBlocks
    if (!inside(from) || !inside(to) || !Number.isInteger(slots) || slots < 0 || slots > cache.pageSize) {
      throw new InvalidArgumentError(
        `copyBlock: ${slots} slots of block ${from} to block ${to}, in ${cache.numBlocks} blocks of ${cache.pageSize}.`,
        'Name blocks of the cache and at most pageSize slots.',
      )
    }
  },
  /** `rows` are the query rows of the batch's step. */
  attention(out: F32, lse: F32, q: F32, cache: PagedCache, rows: number, scale: number): void {
    dtypes('attention', { out, lse, q }, {})
    const { kvLoraRank, ropeDim } = cache.format
    const [t, h, width] = q.shape
    demand(
      q.shape.length === 3 &&
        width === kvLoraRank + ropeDim &&
        sizeOf(out.shape) === t! * h! * kvLoraRank &&
        sizeOf(lse.shape) === t! * h!,
      `attention over ${cache.format.name}`,
      { out, lse, q },
    )
    queryRows('attention', rows, t!)
    softmaxScale('attention', scale)
  },
  /** `rows` are the query rows of the batch's step. */
  naiveAttention(out: F32, q: F32, kvB: Weight, cache: PagedCache, rows: number, scale: number): void {
    dtypes('naiveAttention', { out, q }, {})
    matrix('naiveAttention', 'kvB', kvB, 2)
    const { kvLoraRank, ropeDim } = cache.format
    const [t, h, width] = q.shape
    const nope = width! - ropeDim
    demand(
      q.shape.length === 3 &&
        nope > 0 &&
        rowsOf(out) === t! * h! &&
        kvB.shape[1] === kvLoraRank &&
        kvB.shape[0] === h! * (nope + last(out)),
      `naiveAttention over ${cache.format.name}`,
      { out, q, kvB },
    )
    queryRows('naiveAttention', rows, t!)
    softmaxScale('naiveAttention', scale)
  },
} as const

function epsilon(operation: string, eps: number): void {
  if (!(eps >= 0)) throw new InvalidArgumentError(`${operation}: eps is ${eps}.`, 'Give a number ≥ 0.')
}

/** Whether out can be x times a matrix. */
function multiplies(out: Shaped, x: Shaped, { shape }: Shaped): boolean {
  const [o, i] = shape as [number, number]
  const size = sizeOf(x.shape)
  return size % i === 0 && sizeOf(out.shape) === (size / i) * o
}

function softmaxScale(operation: string, scale: number): void {
  if (!(scale > 0 && scale < Infinity))
    throw new InvalidArgumentError(`${operation}: the softmax scale is ${scale}.`, 'Give a finite number > 0.')
}

function demand(holds: boolean, operation: string, operands: Record<string, Shaped>): void {
  if (holds) return
  const shapes = Object.entries(operands).map(([name, { shape }]) => `${name} [${shape.join(', ')}]`)
  throw new InvalidArgumentError(
    `${operation}: the shapes ${shapes.join(', ')} don't fit together.`,
    'Give the shapes that the operation documents.',
  )
}

function dtypes(operation: string, floats: Record<string, Tensor>, ints: Record<string, Tensor>): void {
  for (const name in floats) dtype(operation, name, floats[name]!, 'f32')
  for (const name in ints) dtype(operation, name, ints[name]!, 'i32')
}

function dtype(operation: string, name: string, tensor: Tensor, wanted: Tensor['dtype']): void {
  if (tensor.dtype === wanted) return
  throw new InvalidArgumentError(
    `${operation}: ${name} is ${tensor.dtype}, not ${wanted}.`,
    `Give an ${wanted} tensor.`,
  )
}

function matrix(operation: string, name: string, operand: Shaped, rank: number): void {
  if (operand.shape.length === rank) return
  throw new InvalidArgumentError(
    `${operation}: ${name} [${operand.shape.join(', ')}] has ${operand.shape.length} dimensions, not ${rank}.`,
    'Give the shape that the operation documents.',
  )
}

function columns(operation: string, x: Shaped, start: number, width: number): void {
  if (Number.isInteger(start) && Number.isInteger(width) && start >= 0 && width >= 0 && start + width <= last(x)) return
  throw new InvalidArgumentError(
    `${operation}: columns [${start}, ${start + width}) are not all in [${x.shape.join(', ')}].`,
    'Name columns of the last dimension.',
  )
}

function queryRows(operation: string, rows: number, t: number): void {
  if (rows <= t) return
  throw new InvalidArgumentError(
    `${operation}: the batch's step has ${rows} query rows, and q has ${t}.`,
    'Give q a row for each query of the step.',
  )
}

const last = (x: Shaped) => x.shape.at(-1) ?? 1
const rowsOf = (x: Shaped) => (last(x) === 0 ? 0 : sizeOf(x.shape) / last(x))
const same = (a: Shaped, b: Shaped) => sizeOf(a.shape) === sizeOf(b.shape) && last(a) === last(b)
