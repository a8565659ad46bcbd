import type { RouterOptions } from '@flashmla/spec'
import type { Case, Dimensions } from '../case'
import { assertSame, assertThrows } from '../compare'
import { batchOf, PoisonedCache } from '../paged'
import { Random } from '../random'

const router: RouterOptions = {
  scoring: 'softmax',
  method: 'greedy',
  topK: 2,
  numGroups: 1,
  topkGroups: 1,
  normalize: false,
  scale: 1,
}

/** Arguments that don't fit, and resources that are gone: typed errors, and nothing written. */
export function errorCases({ formats, pageSizes, heads }: Dimensions): readonly Case[] {
  const [format, pageSize] = [formats[0]!, pageSizes[0]!]
  const rank = format.kvLoraRank
  return [
    {
      name: 'errors: operands that do not fit are refused and nothing is written',
      async run(w) {
        const b = w.backend
        const before = new Random(61).values(24)
        const [out, ints] = [w.f32([4, 6], before), w.i32([4], [0, 1, 0, 1])]
        const x = w.f32([4, 5])
        const square = await w.weight([6, 6], new Float32Array(36))
        const heads3 = await w.weight([2, 3, 3], new Float32Array(18))
        const expert = { gate: await w.weight([3, 5], new Float32Array(15)), up: square, down: square }
        const options = (change: Partial<RouterOptions>) => ({ ...router, ...change })
        const [ids, weights] = [w.i32([4, 2]), w.f32([4, 2])]
        const calls: [string, () => unknown][] = [
          ['embed into too many rows', () => b.embed(out, square, w.i32([3]))],
          ['embed from a stack', () => b.embed(out, heads3, ints)],
          ['gatherRows of another width', () => b.gatherRows(out, x, ints)],
          ['gatherRows into too many rows', () => b.gatherRows(out, out, w.i32([3]))],
          ['rmsNorm with another weight', () => b.rmsNorm(out, out, w.f32([5]), 1e-6)],
          ['rmsNorm into another shape', () => b.rmsNorm(out, x, w.f32([5]), 1e-6)],
          ['rmsNorm with a NaN eps', () => b.rmsNorm(out, out, w.f32([6]), Number.NaN)],
          ['linear of another width', () => b.linear(out, x, square)],
          ['linear into another shape', () => b.linear(out, w.f32([3, 6]), square)],
          ['linear by a stack', () => b.linear(out, out, heads3)],
          ['headLinear of another width', () => b.headLinear(out, x, heads3)],
          ['headLinear by a matrix', () => b.headLinear(out, out, square)],
          ['copyColumns past the end', () => b.copyColumns(out, 3, x, 0, 4)],
          ['copyColumns from before the start', () => b.copyColumns(out, 0, x, -1, 2)],
          ['copyColumns over other rows', () => b.copyColumns(out, 0, w.f32([3, 5]), 0, 2)],
          ['rotary past the end', () => b.rotary(out, 3, w.f32([9, 2, 2]), ints, true)],
          ['rotary by a flat table', () => b.rotary(out, 0, w.f32([9, 4]), ints, true)],
          ['rotary at too few positions', () => b.rotary(out, 0, w.f32([9, 2, 2]), w.i32([3]), true)],
          ['add of another shape', () => b.add(out, x)],
          ['siluMul of another shape', () => b.siluMul(out, out, x)],
          ['argmax into too few ids', () => b.argmax(w.i32([3]), out)],
          ['argmax into floats', () => b.argmax(out as never, out)],
          ['route to too few ids', () => b.route(w.i32([4]), weights, out, undefined, router)],
          ['route with another bias', () => b.route(ids, weights, out, w.f32([5]), router)],
          [
            'route to more than there are',
            () => b.route(w.i32([4, 7]), w.f32([4, 7]), out, undefined, options({ topK: 7 })),
          ],
          [
            'route in groups that do not divide',
            () => b.route(ids, weights, out, undefined, options({ method: 'noaux_tc', numGroups: 4 })),
          ],
          ['experts of another width', () => b.experts(out, out, ids, weights, [expert])],
          ['experts with other weights', () => b.experts(out, out, ids, x, [expert])],
        ]
        for (const [what, call] of calls) await assertThrows(what, 'invalid_argument', call)
        assertSame('out', await b.read(out), before)
      },
    },
    {
      name: 'errors: caches and attention that do not fit are refused and nothing is written',
      async run(w) {
        const b = w.backend
        const random = new Random(62)
        const filled = new PoisonedCache(w, format, 12, pageSize)
        const step = filled.fill(random, [3, 2], [1, 2])
        const [batch, { cache, width }] = [batchOf(w, step), filled]
        const before = random.values(3 * heads * rank)
        const [out, lse] = [w.f32([3, heads, rank], before), w.f32([3, heads])]
        const q = w.f32([3, heads, width])
        const kvB = await w.weight([heads * 8, rank], new Float32Array(heads * 8 * rank))
        const fitting = await w.weight([heads * 2 * rank, rank], new Float32Array(heads * 2 * rank * rank))
        const calls: [string, () => unknown][] = [
          ['a cache of no blocks', () => b.cache(format, 0, pageSize)],
          ['a page of no slots', () => b.cache(format, 1, 0)],
          ['a page of half a slot', () => b.cache(format, 1, 1.5)],
          ['append of another width', () => b.append(cache, w.f32([2, width - 1]), w.i32([2]))],
          ['append to too few slots', () => b.append(cache, w.f32([2, width]), w.i32([1]))],
          ['copyBlock from past the end', () => b.copyBlock(cache, 12, 0, 1)],
          ['copyBlock to a negative block', () => b.copyBlock(cache, 0, -1, 1)],
          ['copyBlock of too many slots', () => b.copyBlock(cache, 0, 1, pageSize + 1)],
          ['attention by a narrower query', () => b.attention(out, lse, w.f32([3, heads, width - 1]), cache, batch, 1)],
          [
            'attention by fewer rows than the step has',
            () => b.attention(w.f32([2, heads, rank]), w.f32([2, heads]), w.f32([2, heads, width]), cache, batch, 1),
          ],
          ['attention into another out', () => b.attention(w.f32([3, heads, rank + 1]), lse, q, cache, batch, 1)],
          ['attention into another lse', () => b.attention(out, w.f32([3]), q, cache, batch, 1)],
          ['attention with the softmax scale 0', () => b.attention(out, lse, q, cache, batch, 0)],
          ['attention with the softmax scale -1', () => b.attention(out, lse, q, cache, batch, -1)],
          ['attention with an infinite softmax scale', () => b.attention(out, lse, q, cache, batch, Infinity)],
          ['naive attention with no softmax scale', () => b.naiveAttention(out, q, fitting, cache, batch, Number.NaN)],
          ['naive attention by another kvB', () => b.naiveAttention(out, q, kvB, cache, batch, 1)],
        ]
        for (const [what, call] of calls) await assertThrows(what, 'invalid_argument', call)
        assertSame('out', await b.read(out), before)
      },
    },
    {
      name: 'errors: use after dispose is a typed error, and dispose may be called twice',
      async run(w) {
        const b = w.backend
        const random = new Random(63)
        const filled = new PoisonedCache(w, format, 12, pageSize)
        const step = filled.fill(random, [3], [1])
        const [batch, { cache, width }] = [batchOf(w, step), filled]
        const [out, lse, q] = [w.f32([1, heads, rank]), w.f32([1, heads]), w.f32([1, heads, width])]
        const [x, view, weight] = [w.f32([2]), w.f32([2]), await w.weight([2, 2], new Float32Array(4))]
        const slice = w.keep(b.view(view, [1]))
        for (const resource of [x, view, weight]) {
          resource.dispose()
          resource.dispose()
        }
        await assertThrows('read', 'disposed', () => b.read(x))
        await assertThrows('write', 'disposed', () => b.write(x, new Float32Array(1)))
        await assertThrows('view', 'disposed', () => b.view(x, [1]))
        await assertThrows('a view whose tensor is gone', 'disposed', () => b.read(slice))
        await assertThrows('an operand', 'disposed', () => b.add(w.f32([2]), x))
        await assertThrows('a weight', 'disposed', () => b.linear(w.f32([2]), w.f32([2]), weight))
        batch.dispose()
        batch.dispose()
        await assertThrows('a batch', 'disposed', () => batch.update(step))
        await assertThrows('attention over a batch', 'disposed', () => b.attention(out, lse, q, cache, batch, 1))
        const other = batchOf(w, step)
        cache.dispose()
        cache.dispose()
        await assertThrows('append', 'disposed', () => b.append(cache, w.f32([1, width]), w.i32([1])))
        await assertThrows('copyBlock', 'disposed', () => b.copyBlock(cache, 0, 1, 1))
        await assertThrows('attention over a cache', 'disposed', () => b.attention(out, lse, q, cache, other, 1))
      },
    },
  ]
}
