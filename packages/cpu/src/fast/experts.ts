import type { ExpertWeights } from '@flashmla/spec'
import { Op } from './commands'
import { quantizeRows, releaseRows } from './linear'
import type { ThreadPool } from './pool'
import type { FastTensor } from './tensor'
import type { FastWeight } from './weight'
import { MATRIX_WORDS } from './weight'

/** Of wasm/experts.c and matrix.h. */
const COLUMNS = 32
const MAX_ROWS = 64

/** Descriptors of a layer's experts in shared memory, made on first use. */
export class ExpertTables {
  readonly #tables = new WeakMap<readonly ExpertWeights[], number>()

  constructor(private readonly pool: ThreadPool) {}

  /** @throws DisposedError when a weight is gone */
  address(experts: readonly ExpertWeights[]): number {
    for (const { gate, up, down } of experts)
      for (const weight of [gate, up, down]) void (weight as FastWeight).descriptor
    const known = this.#tables.get(experts)
    if (known !== undefined) return known
    const { heap } = this.pool
    // The new block may be one that a recorded command still uses.
    this.pool.flush()
    const bytes = MATRIX_WORDS * 4
    const table = heap.allocate(experts.length * 3 * bytes)
    experts.forEach(({ gate, up, down }, e) => {
      ;[gate, up, down].forEach((weight, k) => {
        const from = (weight as FastWeight).descriptor
        heap.u8.copyWithin(table + (e * 3 + k) * bytes, from, from + bytes)
      })
    })
    this.#tables.set(experts, table)
    return table
  }
}

/** Records a mixture of experts: rows grouped by expert, gate and up, down, and the weighted sum in order of choice. */
export function recordExperts(
  pool: ThreadPool,
  tables: ExpertTables,
  out: FastTensor<'f32'>,
  x: FastTensor<'f32'>,
  ids: FastTensor<'i32'>,
  weights: FastTensor<'f32'>,
  experts: readonly ExpertWeights[],
): void {
  const pairs = ids.size
  if (pairs === 0) return
  const choices = ids.shape.at(-1) ?? 1
  const n = pairs / choices
  // What may throw comes before memory is taken and anything recorded.
  void [out.address, x.address, ids.address, weights.address]
  const table = tables.address(experts)
  const { heap, commands } = pool
  const gate = experts[0]!.gate as FastWeight
  const [inner, hidden] = [gate.o, gate.i]
  const listBytes = pairs * 4
  const tableBytes = (experts.length + 1) * 4
  const [list, starts, active] = [heap.allocate(listBytes), heap.allocate(tableBytes), heap.allocate(tableBytes)]
  const [acts, ups] = [heap.allocate(pairs * inner * 4), heap.allocate(pairs * inner * 4)]
  const y = heap.allocate(pairs * hidden * 4)
  const work = pairs * inner * hidden
  // Every run of up to 64 rows that an expert may have: the tasks of those it has not are empty.
  const runs = Math.min(experts.length, pairs) + Math.floor(pairs / MAX_ROWS)
  commands
    .begin(Op.expertSort, 1, 0)
    .int(0, ids.address)
    .int(1, pairs)
    .int(2, experts.length)
    .int(3, list)
    .int(4, starts)
    .int(5, active)
    .reads(ids.address, ids.bytes)
    .writes(list, listBytes)
    .writes(starts, tableBytes)
    .writes(active, tableBytes)
    .end()
  const stage = (
    op: number,
    input: number,
    inputRows: number,
    d: number,
    target: number,
    second: number,
    o: number,
  ) => {
    const quantized = quantizeRows(pool, gate.precision, input, inputRows, d)
    const outBytes = pairs * o * 4
    commands
      .begin(op, Math.ceil(o / COLUMNS) * runs, work)
      .int(0, table)
      .int(1, list)
      .int(2, starts)
      .int(3, active)
      .int(4, experts.length)
      .int(5, input)
      .int(6, choices)
      .int(7, target)
      .int(8, second)
      .int(9, o)
      .int(10, quantized.values)
      .int(11, quantized.scales)
      .reads(list, listBytes)
      .reads(starts, tableBytes)
      .reads(active, tableBytes)
      .reads(input, inputRows * d * 4)
      .reads(quantized.values, quantized.bytes)
      .writes(target, outBytes)
      .writes(second, outBytes)
      .end()
    releaseRows(pool, quantized)
  }
  stage(Op.expertUp, x.address, n, hidden, acts, ups, inner)
  stage(Op.expertDown, acts, pairs, inner, y, y, hidden)
  commands
    .begin(Op.expertSum, n, pairs * hidden)
    .int(0, out.address)
    .int(1, y)
    .int(2, weights.address)
    .int(3, choices)
    .int(4, hidden)
    .reads(y, pairs * hidden * 4)
    .reads(weights.address, weights.bytes)
    .writes(out.address, out.bytes)
    .end()
  heap.release(list, listBytes)
  heap.release(starts, tableBytes)
  heap.release(active, tableBytes)
  heap.release(acts, pairs * inner * 4)
  heap.release(ups, pairs * inner * 4)
  heap.release(y, pairs * hidden * 4)
}
