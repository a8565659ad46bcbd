import type { Case } from '../case'
import { assertSame, assertThrows } from '../compare'
import { Random } from '../random'

/** Tensors, views, copies to and from the host. */
export const memoryCases: readonly Case[] = [
  {
    name: 'memory: write and read keep every bit pattern',
    async run(w) {
      const floats = Float32Array.of(0, -0, 1.5, -3e38, 1e-45, Number.NaN, Infinity, -Infinity)
      const ints = Int32Array.of(0, -1, 2147483647, -2147483648)
      assertSame('f32', await w.backend.read(w.f32([2, 4], floats)), floats)
      assertSame('i32', await w.backend.read(w.i32([4], ints)), ints)
    },
  },
  {
    name: 'memory: write at an offset leaves the rest',
    async run(w) {
      const x = w.f32([2, 3], [1, 2, 3, 4, 5, 6])
      w.backend.write(x, Float32Array.of(8, 9), 3)
      assertSame('x', await w.backend.read(x), [1, 2, 3, 8, 9, 6])
    },
  },
  {
    name: 'memory: write and read take copies, in the order of the calls',
    async run(w) {
      const data = Float32Array.of(1, 2)
      const x = w.f32([2], data)
      const y = w.f32([2], [10, 20])
      const source = Float32Array.of(3, 4)
      w.backend.write(x, source)
      source.fill(77)
      w.backend.add(x, y)
      const first = w.backend.read(x)
      w.backend.write(x, Float32Array.of(0, 0))
      const result = await first
      assertSame('the earlier read', result, [13, 24])
      result.fill(5)
      assertSame('x', await w.backend.read(x), [0, 0])
    },
  },
  {
    name: 'memory: a view shares the elements of its tensor',
    async run(w) {
      const x = w.f32([3, 4], new Random(1).values(12))
      const view = w.backend.view(x, [2, 3], 4)
      const inner = w.backend.view(view, [2], 3)
      w.backend.write(inner, Float32Array.of(40, 41))
      w.backend.add(view, w.f32([2, 3], [1, 1, 1, 1, 1, 1]))
      const all = await w.backend.read(x)
      assertSame('the tensor under the views', all.subarray(7, 9), [41, 42])
      assertSame('the view', await w.backend.read(view), all.subarray(4, 10))
      view.dispose()
      assertSame('the tensor after its view is gone', await w.backend.read(x), all)
    },
  },
  {
    name: 'memory: shapes, offsets and arrays that do not fit are refused and write nothing',
    async run(w) {
      const x = w.f32([4], [1, 2, 3, 4])
      const calls: [string, () => unknown][] = [
        ['a negative dimension', () => w.backend.tensor('f32', [2, -1])],
        ['a fraction of a dimension', () => w.backend.tensor('f32', [1.5])],
        ['a view past the end', () => w.backend.view(x, [3], 2)],
        ['a view before the start', () => w.backend.view(x, [1], -1)],
        ['a view at a fraction', () => w.backend.view(x, [1], 0.5)],
        ['a write past the end', () => w.backend.write(x, Float32Array.of(9, 9), 3)],
        ['a write before the start', () => w.backend.write(x, Float32Array.of(9), -1)],
        ['a write of ints to floats', () => w.backend.write(x, Int32Array.of(9) as never)],
      ]
      for (const [what, call] of calls) await assertThrows(what, 'invalid_argument', call)
      assertSame('x', await w.backend.read(x), [1, 2, 3, 4])
    },
  },
]
