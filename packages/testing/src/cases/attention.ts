import type { BatchStep, PagedBatch, PagedCache } from '@flashmla/spec'
import type { Case, Dimensions } from '../case'
import { assertSame } from '../compare'
import { absorbedAttention, naiveAttention } from '../oracle/attention'
import { batchOf, PoisonedCache, stepOf } from '../paged'
import { Random } from '../random'
import type { Workspace } from '../workspace'

interface Scenario {
  readonly name: string
  readonly seqLens: (pageSize: number) => readonly number[]
  readonly queries: readonly number[]
  readonly queryScale?: number
}

const scenarios: readonly Scenario[] = [
  {
    name: 'decode over ragged and zero lengths',
    seqLens: (p) => [0, 1, Math.max(p - 1, 1), p, p + 1, 0, 2 * p + 5, 97],
    queries: [1, 1, 1, 1, 1, 0, 1, 1],
  },
  {
    name: 'causal queries, more of them than tokens too',
    seqLens: (p) => [3, 7, 2, p + 3, 9, 40],
    queries: [3, 1, 5, 2, 0, 40],
  },
]

/** Runs attention over the whole step and compares it with float64. */
export async function expectAttention(
  w: Workspace,
  filled: PoisonedCache,
  step: BatchStep,
  batch: PagedBatch,
  heads: number,
  random: Random,
  queryScale = 1,
): Promise<void> {
  const rank = filled.format.kvLoraRank
  const t = step.queryStart.at(-1)!
  const q = random.values(t * heads * filled.width, queryScale)
  const scale = 1 / Math.sqrt(filled.width)
  const [out, lse] = [w.poisoned(t, heads, rank), w.poisoned(t, heads)]
  w.backend.attention(out, lse, w.f32([t, heads, filled.width], q), filled.cache, batch, scale)
  const expected = absorbedAttention({ rows: filled.rows, pageSize: filled.pageSize, step, q, heads, scale }, rank)
  await w.expectClose('lse', lse, expected.lse)
  await w.expectClose('out', out, expected.out)
}

/** Paged attention, absorbed and naive, over every format and page size. */
export function attentionCases({ formats, pageSizes, heads }: Dimensions): readonly Case[] {
  const grid = formats.flatMap((format) => pageSizes.map((pageSize) => ({ format, pageSize })))
  const blocksFor = (pageSize: number) => Math.ceil(300 / pageSize) + 20
  const one = { format: formats[0]!, pageSize: pageSizes[0]! }
  return [
    ...grid.flatMap(({ format, pageSize }) =>
      scenarios.map(({ name, seqLens, queries, queryScale }) => ({
        name: `attention: ${format.name}, page ${pageSize}: ${name}`,
        async run(w: Workspace) {
          const random = new Random(pageSize)
          const filled = new PoisonedCache(w, format, blocksFor(pageSize), pageSize)
          const step = filled.fill(random, seqLens(pageSize), queries)
          await expectAttention(w, filled, step, batchOf(w, step), heads, random, queryScale)
        },
      })),
    ),
    ...formats.map((format) => ({
      name: `attention: ${format.name}: scores of hundreds don't overflow`,
      async run(w: Workspace) {
        const random = new Random(31)
        const filled = new PoisonedCache(w, format, blocksFor(one.pageSize), one.pageSize)
        const step = filled.fill(random, [50, 5], [2, 1])
        await expectAttention(w, filled, step, batchOf(w, step), heads, random, 64)
      },
    })),
    ...formats.map((format) => ({
      name: `attention: ${format.name}: naive attention rebuilds keys and values`,
      async run(w: Workspace) {
        const random = new Random(32)
        const pageSize = one.pageSize
        const { kvLoraRank: rank, ropeDim } = format
        const [nope, v] = [16, 24]
        const filled = new PoisonedCache(w, format, blocksFor(pageSize), pageSize)
        const step = filled.fill(random, [0, 1, 37, 6], [1, 1, 4, 6])
        const kvB = random.values(heads * (nope + v) * rank, 0.25)
        const t = step.queryStart.at(-1)!
        const q = random.values(t * heads * (nope + ropeDim))
        const scale = 1 / Math.sqrt(nope + ropeDim)
        const out = w.poisoned(t, heads, v)
        w.backend.naiveAttention(
          out,
          w.f32([t, heads, nope + ropeDim], q),
          await w.weight([heads * (nope + v), rank], kvB),
          filled.cache,
          batchOf(w, step),
          scale,
        )
        const problem = { rows: filled.rows, pageSize, step, q, heads, scale }
        await w.expectClose('out', out, naiveAttention(problem, kvB, rank, nope, v).out)
      },
    })),
    {
      name: 'attention: sequences that share a page read it both',
      async run(w) {
        const random = new Random(33)
        const filled = new PoisonedCache(w, one.format, 8, one.pageSize)
        const p = one.pageSize
        const slots = [...Array.from({ length: p }, (_, i) => 5 * p + i), 2 * p, 7 * p]
        filled.append(slots, random.values(slots.length * filled.width))
        const step = stepOf([p + 1, p + 1, p], [1, 2, 1], [[5, 2], [5, 7], [5]])
        await expectAttention(w, filled, step, batchOf(w, step), heads, random)
      },
    },
    {
      name: 'attention: the same call gives the same bits',
      async run(w) {
        const random = new Random(34)
        const filled = new PoisonedCache(w, one.format, blocksFor(one.pageSize), one.pageSize)
        const step = filled.fill(random, [1, 131, 40], [1, 2, 4])
        const batch = batchOf(w, step)
        const [t, rank] = [7, one.format.kvLoraRank]
        const q = w.f32([t, heads, filled.width], random.values(t * heads * filled.width))
        const run = async (cache: PagedCache) => {
          const [out, lse] = [w.poisoned(t, heads, rank), w.poisoned(t, heads)]
          w.backend.attention(out, lse, q, cache, batch, 0.1)
          return [...(await w.backend.read(out)), ...(await w.backend.read(lse))]
        }
        const first = await run(filled.cache)
        for (let again = 0; again < 3; again++) assertSame('out and lse', await run(filled.cache), first)
      },
    },
  ]
}
