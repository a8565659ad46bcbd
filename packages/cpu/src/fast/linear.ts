import { Op } from './commands'
import type { ThreadPool } from './pool'
import type { FastWeight } from './weight'

/** Activations in 16-bit blocks of 32 for 8-bit weights; nothing for the others. Scales lie in the same block. */
export interface QuantizedRows {
  readonly values: number
  readonly scales: number
  readonly bytes: number
}

const none: QuantizedRows = { values: 0, scales: 0, bytes: 0 }
/** Multiply-adds of one task: a long run of weights, which the prefetcher follows; less where few rows wait for memory. */
const TASK_WORK = 262144
const FEW_ROWS = 4
const TASK_WORK_OF_FEW = 24576
/** Tasks a thread at least, so that all end at about the same time. */
const TASKS_PER_THREAD = 4
const TASK_ROWS = 64
/** Of wasm/matrix.c: columns that many rows are multiplied by at a time, and how many rows. */
const WIDE = 24
const LEAST_WIDE = 24

/** Records the quantization of x `[n, d]` where `precision` needs it. */
export function quantizeRows(
  pool: ThreadPool,
  precision: 'f32' | 'bf16' | 'q8',
  x: number,
  n: number,
  d: number,
): QuantizedRows {
  if (precision !== 'q8') return none
  const blocks = Math.ceil(d / 32)
  const bytes = n * blocks * (64 + 4)
  const values = pool.heap.allocate(bytes)
  const scales = values + n * blocks * 64
  pool.commands
    .begin(Op.quantize, n, n * d)
    .int(0, x)
    .int(1, values)
    .int(2, scales)
    .int(3, d)
    .reads(x, n * d * 4)
    .writes(values, bytes)
    .end()
  return { values, scales, bytes }
}

/** Frees what `quantizeRows` took, once its reader is recorded. */
export function releaseRows(pool: ThreadPool, rows: QuantizedRows): void {
  if (rows.bytes > 0) pool.heap.release(rows.values, rows.bytes)
}

/** Records out `[n, heads, o]` = x `[n, heads, i]` · weight `[heads, o, i]`ᵀ, addresses for tensors. */
export function recordLinear(
  pool: ThreadPool,
  out: number,
  x: number,
  weight: FastWeight,
  heads: number,
  n: number,
): void {
  if (n === 0) return
  const { descriptor, i } = weight
  const o = weight.o / heads
  const rows = Math.min(n, TASK_ROWS)
  const work = n <= FEW_ROWS ? TASK_WORK_OF_FEW : TASK_WORK
  const shares = Math.ceil((pool.threads * TASKS_PER_THREAD) / (heads * Math.ceil(n / rows)))
  const wanted = Math.min(work / Math.max(i * rows, 1), pool.threads > 1 ? o / shares : o)
  const columns =
    rows >= LEAST_WIDE && wanted >= WIDE / 2
      ? Math.max(1, Math.round(wanted / WIDE)) * WIDE
      : Math.ceil(Math.max(wanted, 1) / 8) * 8
  const tasks = Math.ceil(o / columns) * heads * Math.ceil(n / rows)
  const quantized = quantizeRows(pool, weight.precision, x, n * heads, i)
  pool.commands
    .begin(Op.gemm, tasks, n * weight.o * i)
    .int(0, descriptor)
    .int(1, x)
    .int(2, out)
    .int(3, heads)
    .int(4, n)
    .int(5, columns)
    .int(6, rows)
    .int(7, quantized.values)
    .int(8, quantized.scales)
    .reads(x, n * heads * i * 4)
    .reads(quantized.values, quantized.bytes)
    .writes(out, n * weight.o * 4)
    .end()
  releaseRows(pool, quantized)
}
