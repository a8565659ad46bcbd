import type { ExpertWeights } from '@flashmla/spec'
import { expect, test } from 'vitest'
import { EXPERT_BYTES } from '../kernels/model-params'
import { fakeBackend, field, source } from '../testing/fake-backend'
import { H100 } from '../testing/fake-device'

const AMPERE = { ...H100, computeCapability: [8, 0] as [number, number] }
const [HIDDEN, INNER, COUNT, CHOICES] = [512, 160, 8, 2]

/** What a layer of experts launches for n rows: their kernels and grids. */
async function layer(dtype: 'f32' | 'bf16', device = H100, hidden = HIDDEN) {
  const { api, backend, launched } = await fakeBackend({}, device)
  const matrix = (o: number, i: number) => backend.weight(source([o, i], dtype))
  const experts: ExpertWeights[] = []
  for (let e = 0; e < COUNT; e++) {
    const [gate, up, down] = [await matrix(INNER, hidden), await matrix(INNER, hidden), await matrix(hidden, INNER)]
    experts.push({ gate, up, down })
  }
  const run = (n: number, offset = 0) => {
    const x = backend.view(backend.tensor('f32', [n * hidden + offset]), [n, hidden], offset)
    const out = backend.tensor('f32', [n, hidden])
    const [ids, weights] = [backend.tensor('i32', [n, CHOICES]), backend.tensor('f32', [n, CHOICES])]
    return launched(() => backend.experts(out, x, ids, weights, experts))
  }
  const shown = (n: number, offset = 0) => run(n, offset).map(({ symbol, grid }) => `${symbol.slice(4)} ${grid}`)
  return { api, experts, run, shown }
}

test('bf16 experts on Hopper: wide tiles from half a pair for each expert on', async () => {
  const { run, shown } = await layer('bf16')
  expect(shown(2)).toEqual(['expert_up 10,4,1', 'expert_down 64,2,1'])
  expect(shown(3)).toEqual([
    'expert_sort 1,1,1',
    'expert_gated_64x256 6,2,1',
    'expert_tiles_64x256 6,2,1',
    'expert_sum 3,2,1',
  ])
  // 1000 pairs are 15 whole tiles, and each expert may have one that is not.
  expect(shown(500)[1]).toBe('expert_gated_64x256 23,2,1')
  expect(
    run(500)
      .slice(0, 3)
      .map((launch) => [field(launch, 'most_tiles'), field(launch, 'stage')]),
  ).toEqual([
    [23, 0],
    [23, 0],
    [23, 2],
  ])
})

test('narrow results have narrow tiles, rows at odd places and other devices those of any card', async () => {
  const narrow = await layer('bf16', H100, 128)
  expect(narrow.shown(40).slice(1, 3)).toEqual(['expert_gated_64x256 9,2,1', 'expert_tiles_64x128 9,1,1'])
  expect(narrow.shown(40, 1)[1]).toBe('expert_tiles_half 9,2,1')
  const ampere = await layer('bf16', AMPERE)
  expect(ampere.shown(16)[0]).toBe('expert_up 10,32,1')
  expect(ampere.shown(17)[1]).toBe('expert_tiles_half 8,2,1')
  const floats = await layer('f32')
  expect(floats.shown(17)[1]).toBe('expert_tiles 8,3,1')
})

test('the table names each matrix, its type and its map', async () => {
  const { api, experts, run } = await layer('bf16')
  const table = new DataView(api.device(field(run(2)[0]!, 'experts') as bigint).slice(0, COUNT * EXPERT_BYTES).buffer)
  for (const [e, { gate, up, down }] of experts.entries()) {
    for (const [i, matrix] of [gate, up, down].entries()) {
      const { address, map, code } = matrix as unknown as { address: bigint; map: bigint; code: number }
      const at = e * EXPERT_BYTES
      expect(table.getBigUint64(at + 8 * i, true)).toBe(address)
      expect(table.getInt32(at + 24 + 4 * i, true)).toBe(code)
      expect(table.getBigUint64(at + 40 + 8 * i, true)).toBe(map)
      expect(map).toBeGreaterThan(address)
    }
  }
})
