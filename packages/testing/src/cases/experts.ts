import type { RouterOptions } from '@flashmla/spec'
import type { Case } from '../case'
import { assertClose, assertSame } from '../compare'
import * as dense from '../oracle/dense'
import { route } from '../oracle/route'
import { Random } from '../random'

const base = { topK: 4, numGroups: 4, topkGroups: 2, normalize: false, scale: 1 } as const
const routers: readonly RouterOptions[] = [
  { ...base, scoring: 'softmax', method: 'greedy', numGroups: 1, topkGroups: 1 },
  { ...base, scoring: 'softmax', method: 'greedy', numGroups: 1, topkGroups: 1, topK: 1, normalize: true },
  { ...base, scoring: 'softmax', method: 'group_limited_greedy', scale: 16 },
  { ...base, scoring: 'softmax', method: 'group_limited_greedy', normalize: true, topK: 8 },
  { ...base, scoring: 'sigmoid', method: 'noaux_tc', normalize: true, scale: 2.5 },
  { ...base, scoring: 'sigmoid', method: 'noaux_tc', topkGroups: 1 },
  { ...base, scoring: 'sigmoid', method: 'noaux_tc', numGroups: 1, topkGroups: 1, normalize: true },
  { ...base, scoring: 'softmax', method: 'noaux_tc', normalize: true, topK: 6 },
]

const routeCases = routers.map((options): Case => {
  const { scoring, method, topK, numGroups, topkGroups, normalize } = options
  const how = `top ${topK}, ${topkGroups} of ${numGroups} groups${normalize ? ', normalized' : ''}`
  return {
    name: `experts: route by ${method} over ${scoring}, ${how}`,
    async run(w) {
      const random = new Random(21)
      const [n, experts] = [19, 32]
      // Distinct logits of a row: a permutation, so that float32 and float64 can't rank them differently.
      const rows = Array.from({ length: n }, () => Array.from(random.permutation(experts), (i) => i / 8 - 2))
      // The last row ties everywhere: without a bias the lowest indices win.
      rows[n - 1]!.fill(0.5)
      const bias = method === 'noaux_tc' ? [...random.permutation(experts)].map((i) => i / 64) : undefined
      const ids = w.i32([n, topK], new Int32Array(n * topK).fill(-7))
      const weights = w.poisoned(n, topK)
      w.backend.route(ids, weights, w.f32([n, experts], rows.flat()), bias && w.f32([experts], bias), options)
      const expected = rows.map((row) => route(row, bias, options))
      assertSame(
        'ids',
        await w.backend.read(ids),
        expected.flatMap((token) => token.ids),
      )
      const expectedWeights = expected.flatMap((token) => token.weights)
      assertClose('weights', await w.backend.read(weights), expectedWeights, [n, topK], w.tolerance)
    },
  }
})

/** The mixture of experts: choice and evaluation. */
export const expertCases: readonly Case[] = [
  ...routeCases,
  ...[1, 13].map(
    (n): Case => ({
      name: `experts: ${n} tokens through their experts, added to what is there`,
      async run(w) {
        const random = new Random(22)
        const [hidden, inner, count, k] = [24, 40, 5, 2]
        const host = Array.from({ length: count }, () => ({
          gate: random.values(inner * hidden),
          up: random.values(inner * hidden),
          down: random.values(hidden * inner, 0.25),
        }))
        const experts = []
        for (const { gate, up, down } of host) {
          experts.push({
            gate: await w.weight([inner, hidden], gate),
            up: await w.weight([inner, hidden], up),
            down: await w.weight([hidden, inner], down),
          })
        }
        const [x, before] = [random.values(n * hidden), random.values(n * hidden)]
        // Expert 4 is chosen by no token, expert 0 by all.
        const ids = Array.from({ length: n * k }, (_, i) => (i % k === 0 ? 0 : 1 + random.below(3)))
        const weights = random.values(n * k)
        const out = w.f32([n, hidden], before)
        w.backend.experts(out, w.f32([n, hidden], x), w.i32([n, k], ids), w.f32([n, k], weights), experts)
        const sum = dense.experts(x, ids, weights, host, hidden, inner)
        await w.expectClose(
          'out',
          out,
          sum.map((value, i) => value + before[i]!),
        )
      },
    }),
  ),
]
