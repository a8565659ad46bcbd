import { InvalidArgumentError } from '@flashmla/spec'
import { expect, test } from 'vitest'
import { base, plan } from '../testing/plans'
import { checkShape } from './shape'

const MANY = 1_000_000

test.each([
  [{ hQ: 64 }, '_merge_paced'],
  [{ hQ: 16, sQ: 5 }, '_merge'],
  [{ pageSize: 1 }, '_gather'],
  [{ pageSize: 16 }, '_merge'],
  [{ pageSize: 32 }, '_merge'],
  [{ pageSize: 48 }, '_gather'],
  [{ pageSize: 128 }, '_merge'],
  [{ kvRowStride: 584 }, '_merge'],
  [{ kvPageStride: 64 * 576 + 8 }, '_merge'],
  [{ batch: 44, hQ: 33 }, '_merge_paced'],
  [{ batch: 43, hQ: 33 }, '_share'],
  [{ batch: 34, hQ: 17 }, '_few32_merge'],
  [{ batch: 33, hQ: 17 }, '_few32'],
  [{ batch: 1, hQ: 32 }, '_few32'],
  [{ batch: 128, hQ: 16, sQ: 2, totalQueries: 34 }, '_few32_merge'],
  [{ batch: 128, hQ: 16, sQ: 2, totalQueries: 33 }, '_few32'],
  [{ batch: 1, hQ: 64, expectedTokens: MANY }, '_share'],
  [{ batch: 1, hQ: 64, totalQueries: 1, expectedTokens: MANY }, '_share'],
  [{ batch: 1, hQ: 128 }, ''],
  [{ batch: 1, hQ: 128, expectedTokens: 9000 }, '_share'],
  [{ batch: 1, hQ: 129 }, '_share'],
  // Tiles of 32 beside each other: where nothing is known for up to four sequences of two, ...
  [{ batch: 4, hQ: 64 }, '_few32'],
  [{ batch: 4, hQ: 33, totalQueries: 4 }, '_few32'],
  [{ batch: 5, hQ: 64 }, '_share'],
  [{ batch: 1, hQ: 65 }, ''],
  // ... and where tokens are few: eight blocks of 64 for each of 66 pairs, three and four for each of 33 groups of three and four.
  [{ batch: 16, hQ: 64, expectedTokens: 66 * 8 * 64 }, '_few32'],
  [{ batch: 16, hQ: 64, expectedTokens: 66 * 8 * 64 + 1 }, '_share'],
  [{ batch: 17, hQ: 64, expectedTokens: 0 }, '_share'],
  [{ batch: 8, hQ: 96, expectedTokens: 33 * 3 * 64 }, '_few32'],
  [{ batch: 8, hQ: 96, expectedTokens: 33 * 3 * 64 + 1 }, '_share'],
  [{ batch: 8, hQ: 128, expectedTokens: 33 * 4 * 64 }, '_few32'],
  [{ batch: 8, hQ: 128, expectedTokens: 33 * 4 * 64 + 1 }, '_share'],
  [{ batch: 9, hQ: 128, expectedTokens: 0 }, '_share'],
  [{ batch: 1, sQ: 2, hQ: 128, expectedTokens: 0 }, '_share'],
  [{ batch: 8, hQ: 128, pageSize: 1, expectedTokens: 0 }, '_gather'],
  // Tiles of 16 for fewer still: four blocks for each of 66 pairs, eight for each of 33 groups of four and of 16 of eight.
  [{ batch: 16, hQ: 32, expectedTokens: 66 * 4 * 64 }, '_few'],
  [{ batch: 16, hQ: 32, expectedTokens: 66 * 4 * 64 + 1 }, '_few32'],
  [{ batch: 17, hQ: 32, expectedTokens: 0 }, '_few32'],
  [{ batch: 8, hQ: 64, expectedTokens: 33 * 8 * 64 }, '_few'],
  [{ batch: 8, hQ: 64, expectedTokens: 33 * 8 * 64 + 1 }, '_few32'],
  [{ batch: 9, hQ: 64, expectedTokens: 0 }, '_few32'],
  [{ batch: 4, hQ: 128, expectedTokens: 16 * 8 * 64 }, '_few'],
  [{ batch: 4, hQ: 128, expectedTokens: 16 * 8 * 64 + 1 }, '_few32'],
  [{ batch: 4, hQ: 80, expectedTokens: 16 * 5 * 64 }, '_few'],
  [{ batch: 4, hQ: 80, expectedTokens: 16 * 5 * 64 + 1 }, '_few32'],
  [{ batch: 34, hQ: 16 }, '_few_merge'],
  [{ batch: 33, hQ: 16 }, '_few'],
  [{ batch: 128, hQ: 1, sQ: 16 }, '_few_merge'],
  [{ batch: 1, hQ: 4, sQ: 4, pageSize: 16 }, '_few'],
  [{ hQ: 16, pageSize: 1 }, '_gather'],
  [{ batch: 128, hQ: 16, totalQueries: 33 }, '_few'],
  [{ batch: 128, hQ: 16, totalQueries: 34 }, '_few_merge'],
  [{ batch: 32, hQ: 4, sQ: 4, totalQueries: 128 }, '_few'],
  [{ batch: 129, hQ: 16, totalQueries: 1 }, '_few_merge'],
  [{ batch: 64, hQ: 128, totalQueries: 64 }, '_share'],
  [{ batch: 1, sQ: 300, totalQueries: 300 }, '_merge'],
  [{ batch: 44, hQ: 64 }, '_merge_paced'],
  [{ batch: 44, hQ: 65 }, '_merge'],
  [{ batch: 43, hQ: 64 }, '_share'],
  [{ batch: 22 }, '_merge'],
  [{ batch: 21 }, '_share'],
  [{ batch: 1, sQ: 300 }, '_merge'],
] as const)('%j runs mla_decode_bf16%s', (overrides, variant) => {
  expect(plan(overrides).symbol).toBe(`mla_decode_bf16${variant}`)
})

test.each([
  { hQ: 0 },
  { batch: 1.5 },
  { sQ: -1 },
  { pageSize: 2 ** 31 },
  { kvRowStride: 575 },
  { kvRowStride: 577 },
  { kvPageStride: 64 * 576 + 4 },
  { kvRowStride: Number.NaN },
  { kvPageStride: 64 * 576 + 0.5 },
  { dtype: 'f32' as 'f16' },
  { outDtype: 'f64' as 'f32' },
  { kvPageStride: 64 },
  { totalQueries: 129 },
  { expectedTokens: -1 },
  { expectedTokens: 0.5 },
  { expectedTokens: Number.NaN },
])('the shape %j is refused', (overrides) => {
  expect(() => checkShape({ ...base, ...overrides })).toThrow(InvalidArgumentError)
})
