import { angles } from '../angles'
import type { Case } from '../case'
import { assertSame } from '../compare'
import * as oracle from '../oracle/dense'
import { Random } from '../random'

const close = (name: string, run: Case['run']): Case => ({ name: `operations: ${name}`, run })

/** Widths that are no multiple of a vector, and ones that are. */
const linearShapes = [
  [1, 1, 1],
  [3, 5, 7],
  [1, 96, 64],
  [17, 33, 130],
  [64, 128, 256],
] as const

/** The operations of a model graph, each against float64. */
export const operationCases: readonly Case[] = [
  ...linearShapes.map(([n, o, i]) =>
    close(`linear [${n}, ${i}] by [${o}, ${i}]`, async (w) => {
      const random = new Random(n + o + i)
      const [x, weight] = [random.values(n * i), random.values(o * i)]
      const out = w.poisoned(n, o)
      w.backend.linear(out, w.f32([n, i], x), await w.weight([o, i], weight))
      await w.expectClose('out', out, oracle.linear(x, weight, o, i))
    }),
  ),
  close('linear folds leading dimensions', async (w) => {
    const random = new Random(2)
    const [x, weight] = [random.values(2 * 3 * 8), random.values(5 * 24)]
    const out = w.poisoned(2, 5)
    w.backend.linear(out, w.f32([2, 3, 8], x), await w.weight([5, 24], weight))
    await w.expectClose('out', out, oracle.linear(x, weight, 5, 24))
  }),
  ...[
    [1, 1, 4, 4],
    [3, 4, 32, 16],
    [5, 3, 7, 9],
  ].map(([n, h, o, i]) =>
    close(`headLinear [${n}, ${h}, ${i}] by [${h}, ${o}, ${i}]`, async (w) => {
      const random = new Random(3)
      const [x, weight] = [random.values(n! * h! * i!), random.values(h! * o! * i!)]
      const out = w.poisoned(n!, h!, o!)
      w.backend.headLinear(out, w.f32([n!, h!, i!], x), await w.weight([h!, o!, i!], weight))
      await w.expectClose('out', out, oracle.headLinear(x, weight, h!, o!, i!))
    }),
  ),
  close('embed takes rows of a weight', async (w) => {
    const table = new Random(4).values(7 * 12)
    const ids = [6, 0, 3, 3]
    const out = w.poisoned(4, 12)
    w.backend.embed(out, await w.weight([7, 12], table), w.i32([4], ids))
    await w.expectClose(
      'out',
      out,
      ids.flatMap((id) => [...table.subarray(id * 12, id * 12 + 12)]),
    )
  }),
  close('gatherRows takes rows of a tensor', async (w) => {
    const x = new Random(5).values(6 * 9)
    const rows = [5, 1, 1]
    const out = w.poisoned(3, 9)
    w.backend.gatherRows(out, w.f32([6, 9], x), w.i32([3], rows))
    assertSame(
      'out',
      await w.backend.read(out),
      rows.flatMap((row) => [...x.subarray(row * 9, row * 9 + 9)]),
    )
  }),
  ...[
    [1, 1],
    [4, 40],
    [3, 512],
  ].map(([n, d]) =>
    close(`rmsNorm [${n}, ${d}], apart and in place`, async (w) => {
      const random = new Random(6)
      const [x, weight] = [random.values(n! * d!, 8), random.values(d!, 2)]
      const [input, out, gain] = [w.f32([n!, d!], x), w.poisoned(n!, d!), w.f32([d!], weight)]
      const expected = oracle.rmsNorm(x, weight, 1e-6)
      w.backend.rmsNorm(out, input, gain, 1e-6)
      w.backend.rmsNorm(input, input, gain, 1e-6)
      await w.expectClose('out', out, expected)
      await w.expectClose('out in place', input, expected)
    }),
  ),
  close('rmsNorm of a zero row is zero, of huge and tiny rows finite', async (w) => {
    const x = [0, 0, 0, 1e15, -1e15, 2e15, 1e-4, 2e-4, -1e-4]
    const out = w.poisoned(3, 3)
    w.backend.rmsNorm(out, w.f32([3, 3], x), w.f32([3], [1, 1, 2]), 1e-6)
    await w.expectClose('out', out, oracle.rmsNorm(x, [1, 1, 2], 1e-6))
  }),
  close('copyColumns copies its columns only', async (w) => {
    const random = new Random(7)
    const [x, y] = [random.values(2 * 3 * 8), random.values(2 * 3 * 10)]
    const out = w.f32([2, 3, 10], y)
    w.backend.copyColumns(out, 4, w.f32([2, 3, 8], x), 1, 5)
    const expected = y.map((value, i) => {
      const column = (i % 10) - 4
      return column >= 0 && column < 5 ? x[Math.floor(i / 10) * 8 + 1 + column]! : value
    })
    assertSame('out', await w.backend.read(out), expected)
  }),
  ...[true, false].map((interleaved) =>
    close(`rotary, ${interleaved ? 'interleaved' : 'half-split'}, turns its columns only`, async (w) => {
      const random = new Random(8)
      const [n, rows, d, start, pairs, maxPositions] = [4, 3, 24, 5, 8, 11]
      const x = random.values(n * rows * d)
      const table = angles(maxPositions, pairs)
      const positions = [10, 0, 3, 10]
      const tensor = w.f32([n, rows, d], x)
      w.backend.rotary(tensor, start, w.f32([maxPositions, pairs, 2], table), w.i32([n], positions), interleaved)
      await w.expectClose('x', tensor, oracle.rotary(x, [n, rows, d], start, table, pairs, positions, interleaved))
    }),
  ),
  close('add adds in place', async (w) => {
    const random = new Random(9)
    const [x, y] = [random.values(5 * 33), random.values(5 * 33)]
    const tensor = w.f32([5, 33], x)
    w.backend.add(tensor, w.f32([5, 33], y))
    await w.expectClose(
      'x',
      tensor,
      x.map((value, i) => value + y[i]!),
    )
  }),
  close('siluMul, apart and in place, at the ends of exp too', async (w) => {
    const random = new Random(10)
    const gate = random.values(3 * 35, 16)
    gate.set([-200, 200, -90, 90, 0])
    const up = random.values(3 * 35)
    const [a, b, out] = [w.f32([3, 35], gate), w.f32([3, 35], up), w.poisoned(3, 35)]
    w.backend.siluMul(out, a, b)
    w.backend.siluMul(a, a, b)
    await w.expectClose('out', out, oracle.siluMul(gate, up))
    await w.expectClose('out in place', a, oracle.siluMul(gate, up))
  }),
  close('argmax: ties to the lower index, NaN never wins', async (w) => {
    const [nan, inf] = [Number.NaN, Number.POSITIVE_INFINITY]
    const logits = [
      [1, 3, 2, 3, 0],
      [-5, -4, -4, -9, -4],
      [nan, 2, nan, 7, nan],
      [nan, -inf, nan, -inf, -inf],
      [nan, nan, nan, nan, nan],
      [-inf, -inf, -inf, -inf, -inf],
      [0, inf, 5, inf, nan],
    ]
    const ids = w.i32([7], new Int32Array(7).fill(-7))
    w.backend.argmax(ids, w.f32([7, 5], logits.flat()))
    assertSame('ids', await w.backend.read(ids), [1, 1, 3, 1, 0, 0, 1])
  }),
  close('argmax over a wide row finds each place', async (w) => {
    const vocab = 5003
    const places = [0, 1, 31, 32, 1023, 1024, 4096, 5002]
    const logits = new Random(11).values(places.length * vocab)
    places.forEach((place, row) => {
      logits[row * vocab + place] = 1.5
      if (place + 700 < vocab) logits[row * vocab + place + 700] = 1.5
    })
    const ids = w.i32([places.length])
    w.backend.argmax(ids, w.f32([places.length, vocab], logits))
    assertSame('ids', await w.backend.read(ids), places)
  }),
]
