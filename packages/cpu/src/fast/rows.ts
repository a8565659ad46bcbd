// Row-wise and element-wise operations, of wasm/rows.c. Operands fit: the backend has checked them.
import type { CommandList } from './commands'
import { Op } from './commands'
import type { ThreadPool } from './pool'
import type { FastTensor } from './tensor'
import type { FastWeight } from './weight'

type F32 = FastTensor<'f32'>
type I32 = FastTensor<'i32'>

/** Rows and elements of a task. */
const ROWS = 8
const ELEMENTS = 16384

/** How many rows or elements there are, as the kernel reads it. */
const COUNT = 23

function ofRows(pool: ThreadPool, op: number, rows: number, work: number): CommandList {
  return pool.commands.begin(op, Math.ceil(rows / ROWS), work).int(COUNT, rows)
}

function ofElements(pool: ThreadPool, op: number, elements: number, work = elements): CommandList {
  return pool.commands.begin(op, Math.ceil(elements / ELEMENTS), work).int(COUNT, elements)
}

/** Writes host data at once where nothing is recorded or it is long, else in its turn. */
export function writeWords(pool: ThreadPool, address: number, data: Float32Array | Int32Array): void {
  const memory = () => (data instanceof Float32Array ? pool.heap.f32 : pool.heap.i32)
  if (pool.commands.count === 0 || !pool.canStage(data.byteLength)) {
    pool.flush()
    memory().set(data, address / 4)
    return
  }
  // Begun before anything is staged: where the list is full that is a flush, after which what was staged may be written over.
  const command = ofElements(pool, Op.copy, data.length)
  const staged = pool.stage(data.byteLength)
  memory().set(data, staged / 4)
  command.int(0, address).int(1, staged).writes(address, data.byteLength).end()
}

export function recordEmbed(pool: ThreadPool, out: F32, table: FastWeight, ids: I32): void {
  ofRows(pool, Op.embed, ids.size, ids.size * table.i)
    .int(0, out.address)
    .int(1, table.descriptor)
    .int(2, ids.address)
    .reads(ids.address, ids.bytes)
    .writes(out.address, out.bytes)
    .end()
}

export function recordGatherRows(pool: ThreadPool, out: F32, x: F32, rows: I32): void {
  const d = x.shape.at(-1)!
  ofRows(pool, Op.gather, rows.size, rows.size * d)
    .int(0, out.address)
    .int(1, x.address)
    .int(2, rows.address)
    .int(3, d)
    .int(4, d === 0 ? 0 : x.size / d)
    .reads(x.address, x.bytes)
    .reads(rows.address, rows.bytes)
    .writes(out.address, out.bytes)
    .end()
}

export function recordRmsNorm(pool: ThreadPool, out: F32, x: F32, weight: F32, eps: number): void {
  ofRows(pool, Op.rmsNorm, x.size / weight.size, x.size)
    .int(0, out.address)
    .int(1, x.address)
    .int(2, weight.address)
    .int(3, weight.size)
    .float(4, eps)
    .reads(x.address, x.bytes)
    .reads(weight.address, weight.bytes)
    .writes(out.address, out.bytes)
    .end()
}

export function recordCopyColumns(
  pool: ThreadPool,
  out: F32,
  outStart: number,
  x: F32,
  xStart: number,
  width: number,
): void {
  const stride = x.shape.at(-1)!
  const rows = x.size / stride
  ofRows(pool, Op.copyColumns, rows, rows * width)
    .int(0, out.address + outStart * 4)
    .int(1, out.shape.at(-1)!)
    .int(2, x.address + xStart * 4)
    .int(3, stride)
    .int(4, width)
    .reads(x.address, x.bytes)
    .writes(out.address, out.bytes)
    .end()
}

export function recordRotary(
  pool: ThreadPool,
  x: F32,
  start: number,
  table: F32,
  positions: I32,
  interleaved: boolean,
): void {
  if (positions.size === 0) return
  const d = x.shape.at(-1)!
  const rows = x.size / d
  const pairs = table.shape[1]!
  ofRows(pool, Op.rotary, rows, rows * pairs * 8)
    .int(0, x.address + start * 4)
    .int(1, d)
    .int(2, table.address)
    .int(3, positions.address)
    .int(4, pairs)
    .int(5, interleaved ? 1 : 0)
    .int(6, rows / positions.size)
    .reads(table.address, table.bytes)
    .reads(positions.address, positions.bytes)
    .writes(x.address, x.bytes)
    .end()
}

export function recordAdd(pool: ThreadPool, x: F32, y: F32): void {
  ofElements(pool, Op.add, x.size)
    .int(0, x.address)
    .int(1, y.address)
    .reads(y.address, y.bytes)
    .writes(x.address, x.bytes)
    .end()
}

export function recordSiluMul(pool: ThreadPool, out: F32, gate: F32, up: F32): void {
  ofElements(pool, Op.silu, out.size, out.size * 8)
    .int(0, out.address)
    .int(1, gate.address)
    .int(2, up.address)
    .reads(gate.address, gate.bytes)
    .reads(up.address, up.bytes)
    .writes(out.address, out.bytes)
    .end()
}

export function recordArgmax(pool: ThreadPool, ids: I32, logits: F32): void {
  ofRows(pool, Op.argmax, ids.size, logits.size)
    .int(0, ids.address)
    .int(1, logits.address)
    .int(2, logits.shape.at(-1)!)
    .reads(logits.address, logits.bytes)
    .writes(ids.address, ids.bytes)
    .end()
}
