import type { LinearProduct } from '@flashmla/spec'
import { DisposedError, InvalidArgumentError } from '@flashmla/spec'
import { expect, test } from 'vitest'
import { fakeBackend, field, source } from '../testing/fake-backend'
import { H100 } from '../testing/fake-device'

const AMPERE = { ...H100, computeCapability: [8, 0] as [number, number] }
const I = 64

/** What products of the same n rows launch: outputs, `g` behind those of a gated one. */
async function layer(outputs: readonly string[], dtype: 'f32' | 'bf16', device = H100, i = I) {
  const { backend, launched } = await fakeBackend({}, device)
  const matrix = (o: number) => backend.weight(source([o, i], dtype))
  const weights: Omit<LinearProduct, 'out'>[] = []
  for (const each of outputs) {
    const o = Number.parseInt(each, 10)
    weights.push({ weight: await matrix(o), ...(each.endsWith('g') ? { up: await matrix(o) } : {}) })
  }
  const run = (n: number) => {
    const x = backend.tensor('f32', [n, i])
    const products = weights.map((each) => ({ ...each, out: backend.tensor('f32', [n, each.weight.shape[0]!]) }))
    return launched(() => backend.linears(x, products))
  }
  const shown = (n: number) => run(n).map(({ symbol, grid }) => `${symbol.slice(4)} ${grid}`)
  return { backend, weights, run, shown }
}

test('one row: two products a launch, whatever their weights', async () => {
  for (const device of [H100, AMPERE]) {
    for (const dtype of ['f32', 'bf16'] as const) {
      const { shown, run } = await layer(['40', '64g', '9'], dtype, device)
      expect(shown(1)).toEqual(['linear_row 13,1,1', 'linear_row 2,1,1'])
      const [first] = run(1)
      const names = ['o', 'other_o', 'blocks', 'weight_dtype', 'other_dtype', 'vector', 'add']
      const code = dtype === 'f32' ? 2 : 0
      expect(names.map((name) => field(first!, name))).toEqual([40, 64, 5, code, code, 1, 0])
      expect([field(first!, 'up'), field(first!, 'other_up')].map((address) => address !== 0n)).toEqual([false, true])
    }
  }
})

test('up to 16 rows: two a launch by the tensor cores, which take bf16 and whole groups of 32 columns', async () => {
  const { shown } = await layer(['40', '64g'], 'bf16')
  for (const n of [2, 16]) expect(shown(n)).toEqual(['linear_rows_mma 11,1,1'])
  expect((await layer(['40', '64g'], 'f32')).shown(2)).toEqual([
    'linear_few_4 3,1,1',
    'linear_few_4 4,1,1',
    'linear_few_4 4,1,1',
    'silu_mul 1,1,1',
  ])
  const odd = await layer(['40', '64g'], 'bf16', AMPERE, 40)
  expect(odd.shown(2).map((line) => line.split(' ')[0])).toEqual([
    'linear_few_4',
    'linear_few_4',
    'linear_few_4',
    'silu_mul',
  ])
})

test('more rows: gated tiles on Hopper, elsewhere three launches', async () => {
  const hopper = await layer(['40', '300g'], 'bf16')
  expect(hopper.shown(17).map((line) => line.split(' ')[0])).toEqual(['linear_64x64', 'gated_64x128'])
  const [, gated] = hopper.run(17)
  expect(field(gated!, 'up_map')).not.toBe(field(gated!, 'weight_map'))
  expect((await layer(['300g'], 'bf16', AMPERE)).shown(70)).toEqual([
    'linear_half 2,3,1',
    'linear_half 2,3,1',
    'silu_mul 21,1,1',
  ])
})

test('large weights go by tiles of their own from two rows on', async () => {
  const { shown } = await layer(['40', '20000g'], 'bf16', H100, 1024)
  expect(shown(1)).toEqual(['linear_row 2505,1,1'])
  expect(shown(2).map((line) => line.split(' ')[0])).toEqual(['gated_64x128', 'linear_rows_mma'])
})

test('what does not fit or is gone is refused, and nothing is nothing', async () => {
  const { backend, weights, shown } = await layer(['40', '64g'], 'bf16')
  const x = backend.tensor('f32', [3, I])
  expect(() => backend.linears(x, [{ weight: weights[0]!.weight, out: backend.tensor('f32', [3, 41]) }])).toThrow(
    InvalidArgumentError,
  )
  const out = backend.tensor('f32', [3, 40])
  expect(() => backend.linears(x, [{ weight: weights[0]!.weight, up: weights[1]!.up, out }])).toThrow(
    /linears: the shapes/,
  )
  expect(shown(0)).toEqual([])
  weights[1]!.up!.dispose()
  expect(() => shown(3)).toThrow(DisposedError)
  expect(() => shown(30)).toThrow(DisposedError)
})
