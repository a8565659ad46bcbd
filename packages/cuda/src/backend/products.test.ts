// The products of the model graph (kernels/model), compiled for the host with a block's threads as coroutines, against float64.
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { VALUE_TYPES } from '../kernels/model-params'
import { hostProgram } from '../testing/host-program'

const program = hostProgram('products')

const type = fc.constantFrom(VALUE_TYPES.bf16, VALUE_TYPES.f32)
const size = (most: number) => fc.integer({ min: 1, max: most })
const flag = fc.constantFrom(0, 1)
/** Kernels by their rows; those on tensor cores alone take bf16 and whole groups of 32 columns. Heads lie beside each other, or with gaps. */
const linear = fc.oneof(
  fc
    .tuple(
      fc.constantFrom('few_1', 'few_4', 'few_8', 'many'),
      size(140),
      size(3),
      size(150),
      size(100),
      type,
      flag,
      flag,
    )
    .map(([kernel, n, heads, o, i, code, gap, add]) => [
      kernel,
      n,
      heads,
      o,
      i,
      code,
      i % 8 === 0 ? 1 : 0,
      8 * gap,
      add,
    ]),
  fc
    .tuple(
      fc.constantFrom('few_1', 'few_8', 'many', 'half', 'mma_16x16', 'mma_16x32', 'mma_32x32'),
      size(70),
      size(2),
      size(100),
      size(10),
      flag,
      flag,
    )
    .map(([kernel, n, heads, o, groups, gap, add]) => [
      kernel,
      n,
      heads,
      o,
      groups * 32,
      VALUE_TYPES.bf16,
      1,
      8 * gap,
      add,
    ]),
)
/** Two products of the same rows, each gated or not. */
const rows = fc.oneof(
  fc
    .tuple(size(300), size(70), size(70), type, fc.integer({ min: 0, max: 3 }), flag)
    .map(([i, o, other, code, gated, add]) => ['row', 1, i, o, other, code, i % 8 === 0 ? 1 : 0, gated, add]),
  fc
    .tuple(size(40), size(10), size(70), size(70), fc.integer({ min: 0, max: 3 }), flag)
    .map(([n, groups, o, other, gated, add]) => ['mma', n, groups * 32, o, other, VALUE_TYPES.bf16, 1, gated, add]),
)
const experts = fc
  .tuple(fc.constantFrom('few', 'many', 'half'), size(90), size(9), size(9), size(7), size(3), type, fc.boolean())
  .map(([kernel, n, hidden, inner, count, choices, code, whole]) => {
    const of = whole ? 8 : 5
    return [
      kernel,
      kernel === 'few' ? Math.ceil(n / 20) : n,
      hidden * of,
      inner * of,
      count,
      Math.min(choices, count),
      kernel === 'half' ? VALUE_TYPES.bf16 : code,
      whole ? 1 : 0,
    ]
  })

test.skipIf(!program).each([
  ['linear', linear, 60, 1e-6],
  ['rows', rows, 60, 1e-6],
  ['experts', experts, 15, 2e-5],
] as const)(
  '%s: every value, whatever the sizes, and nothing else is written',
  (what, cases, runs, ofMagnitudes) => {
    fc.assert(
      fc.property(cases as fc.Arbitrary<(string | number)[]>, (numbers) => {
        const [apart, spoiled] = program!([[what, ...numbers].join(' ')])[0]!
          .split(' ')
          .map(Number)
        expect(spoiled).toBe(0)
        expect(apart).toBeLessThan(ofMagnitudes)
      }),
      { numRuns: runs },
    )
  },
  60_000,
)
