/** Float64 results of the dense operations of `Backend`, from their definitions and nothing else. */

/** x `[n, i]` · w `[o, i]`ᵀ */
export function linear(x: ArrayLike<number>, w: ArrayLike<number>, o: number, i: number): Float64Array {
  const n = x.length / i
  const out = new Float64Array(n * o)
  for (let row = 0; row < n; row++)
    for (let j = 0; j < o; j++) for (let k = 0; k < i; k++) out[row * o + j]! += x[row * i + k]! * w[j * i + k]!
  return out
}

/** x `[n, h, i]` · w `[h, o, i]`ᵀ head by head */
export function headLinear(x: ArrayLike<number>, w: ArrayLike<number>, h: number, o: number, i: number): Float64Array {
  const n = x.length / (h * i)
  const out = new Float64Array(n * h * o)
  for (let row = 0; row < n * h; row++) {
    const head = row % h
    for (let j = 0; j < o; j++)
      for (let k = 0; k < i; k++) out[row * o + j]! += x[row * i + k]! * w[(head * o + j) * i + k]!
  }
  return out
}

export function rmsNorm(x: ArrayLike<number>, weight: ArrayLike<number>, eps: number): Float64Array {
  const d = weight.length
  return Float64Array.from(x, (value, at) => {
    const row = Math.floor(at / d) * d
    let squares = 0
    for (let i = 0; i < d; i++) squares += x[row + i]! ** 2
    return (value / Math.sqrt(squares / d + eps)) * weight[at % d]!
  })
}

export const silu = (x: number) => x / (1 + Math.exp(-x))

export function siluMul(gate: ArrayLike<number>, up: ArrayLike<number>): Float64Array {
  return Float64Array.from(gate, (g, i) => silu(g) * up[i]!)
}

/** Σ_k weights[n, k] · down(silu(gate x) · up x) */
export function experts(
  x: ArrayLike<number>,
  ids: ArrayLike<number>,
  weights: ArrayLike<number>,
  all: readonly { gate: ArrayLike<number>; up: ArrayLike<number>; down: ArrayLike<number> }[],
  hidden: number,
  inner: number,
): Float64Array {
  const n = x.length / hidden
  const k = ids.length / n
  const out = new Float64Array(x.length)
  const values = Float64Array.from(x)
  for (let row = 0; row < n; row++) {
    const token = values.subarray(row * hidden, (row + 1) * hidden)
    for (let choice = row * k; choice < (row + 1) * k; choice++) {
      const expert = all[ids[choice]!]!
      const middle = siluMul(linear(token, expert.gate, inner, hidden), linear(token, expert.up, inner, hidden))
      const result = linear(middle, expert.down, hidden, inner)
      for (let i = 0; i < hidden; i++) out[row * hidden + i]! += weights[choice]! * result[i]!
    }
  }
  return out
}

/** Rotates columns [start, start + 2 · pairs) of x `[n, rows, d]`, as multiplication of complex numbers. */
export function rotary(
  x: ArrayLike<number>,
  shape: readonly [n: number, rows: number, d: number],
  start: number,
  table: ArrayLike<number>,
  pairs: number,
  positions: ArrayLike<number>,
  interleaved: boolean,
): Float64Array {
  const [, rows, d] = shape
  const out = Float64Array.from(x)
  for (let row = 0; row < x.length / d; row++) {
    const position = positions[Math.floor(row / rows)]!
    for (let j = 0; j < pairs; j++) {
      const re = row * d + start + (interleaved ? 2 * j : j)
      const im = row * d + start + (interleaved ? 2 * j + 1 : j + pairs)
      const cos = table[(position * pairs + j) * 2]!
      const sin = table[(position * pairs + j) * 2 + 1]!
      out[re] = x[re]! * cos - x[im]! * sin
      out[im] = x[re]! * sin + x[im]! * cos
    }
  }
  return out
}
