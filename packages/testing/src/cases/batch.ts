import type { BatchStep } from '@flashmla/spec'
import type { Case, Dimensions } from '../case'
import { assertThrows } from '../compare'
import { batchOf, PoisonedCache } from '../paged'
import { Random } from '../random'
import { expectAttention } from './attention'

/** Steps that must be refused, made from a good one of 2 sequences for a batch of 5 sequences, 8 rows and 4 more pages. */
const badSteps: readonly [string, (step: BatchStep) => Partial<BatchStep>][] = [
  ['too many sequences', () => ({ seqLens: new Int32Array(6), queryStart: new Int32Array(7) })],
  ['too many query rows', () => ({ queryStart: Int32Array.of(0, 1, 99) })],
  ['a falling queryStart', () => ({ queryStart: Int32Array.of(0, 2, 1) })],
  ['a queryStart that does not begin at 0', () => ({ queryStart: Int32Array.of(1, 2, 3) })],
  ['a queryStart of the wrong length', () => ({ queryStart: Int32Array.of(0, 1) })],
  ['a negative length', () => ({ seqLens: Int32Array.of(-1, 3) })],
  ['a block table that is too short', ({ blockTable }) => ({ blockTable: blockTable.subarray(1) })],
  ['a block table row past the capacity', () => ({ blockTable: new Int32Array(200), blockTableStride: 100 })],
]

/** Steps, updated in place. */
export function batchCases({ formats, pageSizes, heads }: Dimensions): readonly Case[] {
  const [format, pageSize] = [formats[0]!, pageSizes[0]!]
  const numBlocks = Math.ceil(64 / pageSize) + 8
  return [
    {
      name: 'batch: a refused update keeps the step before',
      async run(w) {
        const random = new Random(51)
        const filled = new PoisonedCache(w, format, numBlocks, pageSize)
        const step = filled.fill(random, [9, 3], [2, 1])
        const batch = batchOf(w, step)
        for (const [what, change] of badSteps) {
          await assertThrows(what, 'invalid_argument', () => batch.update({ ...step, ...change(step) }))
        }
        await expectAttention(w, filled, step, batch, heads, random)
      },
    },
    {
      name: 'batch: update copies the step, and replaces the one before',
      async run(w) {
        const random = new Random(52)
        const filled = new PoisonedCache(w, format, numBlocks, pageSize)
        const step = filled.fill(random, [9, 3, 5], [2, 1, 1])
        const batch = batchOf(w, step)
        const shorter: BatchStep = {
          ...step,
          seqLens: Int32Array.of(4, 3),
          queryStart: Int32Array.of(0, 3, 4),
          blockTable: step.blockTable.slice(0, 2 * step.blockTableStride),
        }
        const copy = structuredClone(shorter)
        batch.update(shorter)
        shorter.seqLens.fill(1)
        shorter.queryStart.fill(0)
        shorter.blockTable.fill(0)
        await expectAttention(w, filled, copy, batch, heads, random)
      },
    },
    {
      name: 'batch: attention before the first update is refused',
      async run(w) {
        const { cache, width } = new PoisonedCache(w, format, 2, pageSize)
        const batch = w.keep(w.backend.batch({ maxSequences: 1, maxTokens: 1, maxBlocks: 1 }))
        const [out, lse, q] = [w.f32([1, heads, format.kvLoraRank]), w.f32([1, heads]), w.f32([1, heads, width])]
        await assertThrows('attention', 'invalid_argument', () => w.backend.attention(out, lse, q, cache, batch, 1))
      },
    },
    {
      name: 'batch: a captured step replays over changed tensors and steps',
      async run(w) {
        if (!w.backend.capture) return
        const random = new Random(53)
        const filled = new PoisonedCache(w, format, numBlocks, pageSize)
        const steps = [filled.fill(random, [9, 3], [1, 1]), undefined] as BatchStep[]
        steps[1] = { ...steps[0]!, seqLens: Int32Array.of(2, 1) }
        const batch = batchOf(w, steps[0]!)
        const rank = format.kvLoraRank
        const [x, out, lse] = [w.f32([2, heads, filled.width]), w.poisoned(2, heads, rank), w.poisoned(2, heads)]
        const one = w.f32([2, heads, filled.width], new Float32Array(2 * heads * filled.width).fill(1))
        const attend = () => {
          w.backend.add(x, one)
          w.backend.attention(out, lse, x, filled.cache, batch, 0.1)
        }
        const graph = w.keep(w.backend.capture(attend))
        for (const step of steps) {
          const q = random.values(2 * heads * filled.width)
          const results: Float32Array[][] = []
          batch.update(step)
          for (const run of [attend, () => graph.replay()]) {
            w.backend.write(x, q)
            w.backend.write(out, new Float32Array(2 * heads * rank).fill(Number.NaN))
            run()
            results.push([await w.backend.read(out), await w.backend.read(lse)])
          }
          await w.expectClose('replayed out', w.f32([2, heads, rank], results[1]![0]), results[0]![0]!)
          await w.expectClose('replayed lse', w.f32([2, heads], results[1]![1]), results[0]![1]!)
        }
      },
    },
  ]
}
