import { InvalidArgumentError } from '@flashmla/spec'

/** @throws InvalidArgumentError when a value that picks a row of `what` picks none */
export function checkRow(name: string, value: number, rows: number, what: string): void {
  if (value >= 0 && value < rows) return
  throw new InvalidArgumentError(
    `${name} ${value} is not in a ${what} of ${rows}.`,
    'Use values from 0 to one less than the number of rows.',
  )
}

export function takeRows(out: Float32Array, table: Float32Array, rows: number, ids: Int32Array): void {
  const d = table.length / rows
  for (const id of ids) checkRow('Row', id, rows, 'table')
  for (let n = 0; n < ids.length; n++) out.set(table.subarray(ids[n]! * d, (ids[n]! + 1) * d), n * d)
}

export function dot(a: Float32Array, aStart: number, b: Float32Array, bStart: number, n: number): number {
  let sum = 0
  for (let i = 0; i < n; i++) sum += a[aStart + i]! * b[bStart + i]!
  return sum
}

/** out[r, j] = Σ x[r, k] · w[j, k] over `rows` rows, each operand with its start and row stride. */
export function product(
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

/** out = silu(gate) · up, element by element; `out` may be one of them. */
export function siluMul(out: Float32Array, gate: Float32Array, up: Float32Array): void {
  for (let i = 0; i < out.length; i++) out[i] = (gate[i]! / (1 + Math.exp(-gate[i]!))) * up[i]!
}
