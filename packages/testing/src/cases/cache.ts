import type { Case, Dimensions } from '../case'
import { batchOf, PoisonedCache, stepOf } from '../paged'
import { Random } from '../random'
import { expectAttention } from './attention'

/** What append and copyBlock write and leave. A cache is seen through attention only. */
export function cacheCases({ formats, pageSizes, heads }: Dimensions): readonly Case[] {
  const pageSize = pageSizes.find((size) => size >= 4) ?? pageSizes[0]!
  return formats.flatMap((format): Case[] => [
    {
      name: `cache: ${format.name}: append to slot -1 writes nothing`,
      async run(w) {
        const random = new Random(41)
        const filled = new PoisonedCache(w, format, 4, pageSize)
        const own = Array.from({ length: pageSize }, (_, i) => pageSize + i)
        const slots = own.flatMap((slot) => [-1, slot])
        const latent = random.values(slots.length * filled.width)
        slots.forEach((slot, n) => {
          if (slot < 0) latent.fill(Number.NaN, n * filled.width, (n + 1) * filled.width)
        })
        filled.append(slots, latent)
        const step = stepOf([pageSize], [1], [[1]])
        await expectAttention(w, filled, step, batchOf(w, step), heads, random)
      },
    },
    {
      name: `cache: ${format.name}: a later append replaces the row`,
      async run(w) {
        const random = new Random(42)
        const filled = new PoisonedCache(w, format, 4, pageSize)
        const slots = Array.from({ length: pageSize }, (_, i) => 2 * pageSize + i)
        filled.append(slots, random.values(pageSize * filled.width, 4))
        filled.append([slots[pageSize - 1]!], random.values(filled.width))
        const step = stepOf([pageSize], [1], [[2]])
        await expectAttention(w, filled, step, batchOf(w, step), heads, random)
      },
    },
    {
      name: `cache: ${format.name}: copyBlock copies its slots and no more`,
      async run(w) {
        const random = new Random(43)
        const filled = new PoisonedCache(w, format, 6, pageSize)
        const all = Array.from({ length: 6 * pageSize }, (_, i) => i)
        filled.append(all, random.values(all.length * filled.width))
        const copies = [
          [0, 3, pageSize],
          [1, 4, Math.ceil(pageSize / 2)],
          [2, 5, 0],
        ] as const
        for (const [from, to, slots] of copies) {
          w.backend.copyBlock(filled.cache, from, to, slots)
          for (let slot = 0; slot < slots; slot++) {
            filled.rows.set(to * pageSize + slot, filled.rows.get(from * pageSize + slot)!)
          }
        }
        // The copy is apart from its source.
        filled.append([3 * pageSize], random.values(filled.width))
        const step = stepOf(new Array(6).fill(pageSize), [1, 1, 1, 1, 1, 1], [[0], [1], [2], [3], [4], [5]])
        await expectAttention(w, filled, step, batchOf(w, step), heads, random)
      },
    },
  ])
}
