// Operations that go over rows or elements, as launches. Shapes are checked before.
import {
  MlaColumnsParams,
  MlaElementsParams,
  MlaNormParams,
  MlaRotaryParams,
  MlaTakeRowsParams,
  VALUE_TYPES,
} from '../kernels/model-params'
import type { BackendDevice } from './device'
import type { CudaTensor } from './tensor'
import { columnsOf, rowsOf } from './tensor'

type F32 = CudaTensor<'f32'>
type I32 = CudaTensor<'i32'>

/** Threads of a block; those of a grid walk on to further elements. */
const THREADS = 256
const MOST_BLOCKS = 4096

const blocksFor = (elements: number) => [Math.min(Math.ceil(elements / THREADS), MOST_BLOCKS), 1] as const

interface Table {
  readonly address: bigint
  /** FlashMlaValueType */
  readonly code: number
  readonly rows: number
  readonly d: number
}

/** out[r] = table[ids[r]] */
export function takeRows(device: BackendDevice, out: F32, ids: I32, table: Table): void {
  const { address, code, rows, d } = table
  device.run('mla_take_rows', MlaTakeRowsParams, [ids.size, Math.ceil(d / 1024)], {
    table: address,
    ids: ids.address,
    out: out.address,
    n: ids.size,
    d,
    rows,
    table_dtype: code,
    reserved: 0,
  })
}

/** out[r] = x[at[r]] */
export function takeTensorRows(device: BackendDevice, out: F32, x: F32, at: I32): void {
  takeRows(device, out, at, { address: x.address, code: VALUE_TYPES.f32, rows: rowsOf(x), d: columnsOf(x) })
}

export function rmsNorm(device: BackendDevice, out: F32, x: F32, weight: F32, eps: number): void {
  const n = rowsOf(x)
  device.run('mla_rms_norm', MlaNormParams, [n, 1], {
    x: x.address,
    weight: weight.address,
    out: out.address,
    n,
    d: weight.size,
    eps,
    reserved: 0,
  })
}

export function copyColumns(
  device: BackendDevice,
  out: F32,
  outStart: number,
  x: F32,
  xStart: number,
  width: number,
): void {
  const rows = rowsOf(x)
  device.run('mla_copy_columns', MlaColumnsParams, blocksFor(rows * width), {
    x: x.address + BigInt(4 * xStart),
    out: out.address + BigInt(4 * outStart),
    rows,
    x_stride: columnsOf(x),
    out_stride: columnsOf(out),
    width,
  })
}

/** Turns columns [start, start + 2 · pairs) of x in place. */
export function rotary(
  device: BackendDevice,
  x: F32,
  start: number,
  table: F32,
  positions: I32,
  interleaved: boolean,
): void {
  turnColumns(device, { x, start, out: x, outStart: start, rows: rowsOf(x), table, positions, interleaved })
}

/** Turns columns of x `[rows, …]` from `start` on to those of out from `outStart` on. */
export function turnColumns(
  device: BackendDevice,
  given: {
    readonly x: F32
    readonly start: number
    readonly out: F32
    readonly outStart: number
    readonly rows: number
    readonly table: F32
    readonly positions: I32
    readonly interleaved: boolean
  },
): void {
  const { x, start, out, outStart, rows, table, positions, interleaved } = given
  const [maxPositions, pairs] = table.shape as [number, number, number]
  device.run('mla_rotary', MlaRotaryParams, blocksFor(rows * pairs), {
    x: x.address + BigInt(4 * start),
    out: out.address + BigInt(4 * outStart),
    table: table.address,
    positions: positions.address,
    rows,
    stride: rows === 0 ? 0 : x.size / rows,
    out_stride: rows === 0 ? 0 : out.size / rows,
    rows_per_position: positions.size === 0 ? 1 : rows / positions.size,
    max_positions: maxPositions,
    pairs,
    interleaved: interleaved ? 1 : 0,
  })
}

/** x += y */
export function add(device: BackendDevice, x: F32, y: F32): void {
  const values = { out: x.address, a: y.address, b: null, n: x.size }
  device.run('mla_add', MlaElementsParams, blocksFor(x.size), values)
}

export function siluMul(device: BackendDevice, out: F32, gate: F32, up: F32): void {
  const values = { out: out.address, a: gate.address, b: up.address, n: out.size }
  device.run('mla_silu_mul', MlaElementsParams, blocksFor(out.size), values)
}
