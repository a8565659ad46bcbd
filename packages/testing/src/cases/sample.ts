import { DRAW_COLUMNS, type Draw, packDraw } from '@flashmla/spec'
import type { Case } from '../case'
import { ContractError } from '../compare'
import { drawBySorting } from '../oracle/draw'
import { Random } from '../random'
import type { Workspace } from '../workspace'

const GREEDY: Draw = { temperature: 0, topK: 0, topP: 1, minP: 0, random: 0.5 }

/** Drawing tokens where the logits are; a backend without it has nothing to keep. */
const sample = (name: string, run: (w: Workspace, draw: Drawing) => Promise<void>): Case => ({
  name: `sample: ${name}`,
  run: async (w) => {
    if (w.backend.sample) await run(w, (rows, draws) => drawn(w, rows, draws))
  },
})

type Drawing = (rows: readonly Float32Array[], draws: readonly Draw[]) => Promise<Int32Array>

async function drawn(w: Workspace, rows: readonly Float32Array[], draws: readonly Draw[]): Promise<Int32Array> {
  const [n, vocab] = [rows.length, rows[0]!.length]
  const packed = new Float32Array(n * DRAW_COLUMNS)
  for (const [r, draw] of draws.entries()) packDraw(packed, r, draw)
  const logits = new Float32Array(n * vocab)
  for (const [r, row] of rows.entries()) logits.set(row, r * vocab)
  const ids = w.i32([n], new Int32Array(n).fill(-7))
  w.backend.sample!(ids, w.f32([n, vocab], logits), w.f32([n, DRAW_COLUMNS], packed))
  return w.backend.read(ids)
}

/** Each token is what sorting draws, where that is beyond doubt; `left` may be left to the caller. */
function expectDrawn(ids: Int32Array, rows: readonly Float32Array[], draws: readonly Draw[], left = false): void {
  for (const [r, id] of ids.entries()) {
    if (left && id === -1) continue
    const { token, doubtful } = drawBySorting(rows[r]!, draws[r]!)
    if (id === token || (doubtful && rows[r]![id]! > -Infinity)) continue
    throw new ContractError(`Row ${r} of ${rows[r]!.length}: token ${id}, not ${token}, by ${JSON.stringify(draws[r])}`)
  }
}

export const sampleCases: readonly Case[] = [
  ...[1, 2, 37, 1000, 5003].map((vocab) =>
    sample(`${vocab} tokens, every kind of cut`, async (_, draw) => {
      const random = new Random(vocab)
      const draws: Draw[] = []
      for (const temperature of [0.3, 1, 2.5]) {
        for (const topK of [0, 1, 40]) {
          for (const topP of [0, 0.5, 0.95, 1])
            for (const minP of [0, 0.2]) draws.push({ temperature, topK, topP, minP, random: random.next() })
        }
      }
      const rows = draws.map((_, r) => {
        const row = random.values(vocab, r % 3 === 0 ? 1 : 8)
        for (let i = 0; i < vocab; i += 7) if (r % 5 === 0) row[i] = -Infinity
        if (r % 5 === 0) row[vocab - 1] = 0
        return row
      })
      expectDrawn(await draw(rows, draws), rows, draws, vocab > 4096)
    }),
  ),
  sample('a vocabulary of 129280, few likely tokens', async (_, draw) => {
    const random = new Random(3)
    const draws = [
      { ...GREEDY, temperature: 0.7, random: random.next() },
      { ...GREEDY, temperature: 0.7, topP: 0.95, random: random.next() },
      { ...GREEDY, temperature: 1, topK: 50, random: random.next() },
      { ...GREEDY, temperature: 1, topK: 50, topP: 0.8, minP: 0.01, random: random.next() },
      GREEDY,
    ]
    const rows = draws.map(() => {
      const row = Float32Array.from({ length: 129_280 }, () => (random.next() - 0.5) * 6)
      for (let i = 0; i < 100; i++) row[random.below(row.length)] = 8 + random.next() * 8
      return row
    })
    expectDrawn(await draw(rows, draws), rows, draws)
  }),
  sample('the first of the largest at temperature 0, an infinite logit at any', async (_, draw) => {
    const rows = [
      [1, 3, 2, 3, 0],
      [-5, -Infinity, -4, -9, -4],
      [0, Infinity, 5, Infinity, 1],
      [-0, 0, -1, -2, -3],
    ].map((row) => Float32Array.from(row))
    const draws = [GREEDY, GREEDY, { ...GREEDY, temperature: 1 }, GREEDY]
    const ids = await draw(rows, draws)
    if (String([...ids]) !== '1,2,1,0') throw new ContractError(`The tokens are ${[...ids]}.`)
  }),
  sample('equal tokens in their order, zeros of either sign, and random numbers between two', async (_, draw) => {
    const rows = [
      [-0, 0, -1, -2],
      [0, 0, 0, 0],
      [0, 0, 0, 0],
      [0, 0, 0, 0],
    ].map((row) => Float32Array.from(row))
    const even = { ...GREEDY, temperature: 1 }
    const draws = [{ ...even, topK: 1 }, { ...even, random: 0.25 }, even, { ...even, topK: 3, random: 0.99 }]
    const ids = await draw(rows, draws)
    if (String([...ids]) !== '0,1,2,2') throw new ContractError(`The tokens are ${[...ids]}.`)
  }),
  sample('the 4096 likeliest of many', async (_, draw) => {
    const order = new Random(8).permutation(12_000)
    const row = Float32Array.from(order, (rank) => -rank / 16_384)
    const draws = [0, 0.3, 0.9, 0.9998, 0.99999].map(
      (random): Draw => ({ ...GREEDY, temperature: 1, topK: 4096, random }),
    )
    const rows = draws.map(() => row)
    expectDrawn(await draw(rows, draws), rows, draws)
  }),
  sample('what is not numbers, and more than fits, is left to the caller or right', async (_, draw) => {
    const flat = new Float32Array(20_000).fill(1)
    const rows = [flat, flat, Float32Array.from(flat, (_, i) => (i === 7 ? Number.NaN : 1)), flat.map(() => -Infinity)]
    const cut = { ...GREEDY, temperature: 1, topP: 0.9, random: 0.25 }
    const ids = await draw(rows, [cut, { ...cut, topP: 1, topK: 9000 }, cut, cut])
    expectDrawn(ids.subarray(0, 2), rows, [cut, { ...cut, topP: 1, topK: 9000 }], true)
    if (ids[2] !== -1 || ids[3] !== -1)
      throw new ContractError(`Rows without a number have the tokens ${ids[2]}, ${ids[3]}.`)
  }),
  sample('all random numbers reach all kept tokens, in their shares', async (_, draw) => {
    const row = Float32Array.of(0, -1, -2, -3, -3).map((power) => power * Math.LN2)
    const draws = Array.from(
      { length: 256 },
      (_, i): Draw => ({ ...GREEDY, temperature: 1, topP: 0.8, random: i / 256 }),
    )
    const ids = await draw(
      draws.map(() => row),
      draws,
    )
    const counts = [0, 0, 0, 0, 0]
    for (const id of ids) counts[id]!++
    const expected = [4 / 7, 2 / 7, 1 / 7, 0, 0].map((share) => share * 256)
    if (counts.some((count, i) => Math.abs(count - expected[i]!) > 1.01))
      throw new ContractError(`The tokens came ${counts} times.`)
  }),
]
