import { drawBySorting } from '@flashmla/testing'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { draw } from './draw'
import { NEGLIGIBLE, power } from './powers'

const finite = fc.float({ noNaN: true, noDefaultInfinity: true, min: -80, max: 80 })
const logits = fc.oneof(
  fc.array(finite, { minLength: 1, maxLength: 60 }),
  fc.array(fc.constantFrom(-Infinity, -3, -0, 0, 1, 1.5), { minLength: 1, maxLength: 60 }), // many equal ones
  fc.array(finite, { minLength: 2000, maxLength: 5000, size: 'max' }), // more than twice the k likeliest are kept of at a time
)
const cut = fc.record({
  temperature: fc.constantFrom(2 ** -149, 0.01, 0.7, 1, 3, 100).map(Math.fround),
  topK: fc.constantFrom(0, 0, 1, 2, 40, 700, 100_000),
  topP: fc.constantFrom(0, 0.1, 0.5, 0.95, 0.999, 1, 1).map(Math.fround),
  minP: fc.constantFrom(0, 0, 0.05, 0.5, 1).map(Math.fround),
})
const random = fc.integer({ min: 0, max: 2 ** 32 - 1 }).map((word) => word / 2 ** 32)

describe('draw', () => {
  it('draws what sorting all tokens draws', () => {
    fc.assert(
      fc.property(logits, cut, random, (values, kept, number) => {
        const row = Float32Array.from(values)
        const largest = row.reduce((a, b) => Math.max(a, b))
        fc.pre(largest > -Infinity)
        const { token, doubtful } = drawBySorting(row, { ...kept, random: number }, 1e-9)
        const found = draw(row, largest, kept, number)
        if (doubtful) expect(row[found]).toBeGreaterThan(-Infinity)
        else expect(found).toBe(token)
      }),
      { numRuns: 600 },
    )
  })

  it('takes a row from the middle of the logits of a batch', () => {
    const batch = Float32Array.of(9, 9, 9, 0, 4, 3, 9)
    for (const topK of [0, 2])
      expect(draw(batch.subarray(3, 6), 4, { temperature: 0.01, topK, topP: 0.9, minP: 0 }, 0.5)).toBe(1)
  })

  it('leaves out what no random number reaches', () => {
    const row = new Float32Array(100_000).fill(-41)
    row[77_777] = 0
    for (const number of [0, 0.5, 1 - 2 ** -32])
      expect(draw(row, 0, { temperature: 1, topK: 0, topP: 1, minP: 0 }, number)).toBe(77_777)
  })
})

describe('power', () => {
  it('is e^x', () => {
    fc.assert(
      fc.property(fc.double({ min: -NEGLIGIBLE, max: 0, noNaN: true }), (x) => {
        expect(Math.abs(power(x) / Math.exp(x) - 1)).toBeLessThan(2e-12)
      }),
      { numRuns: 2000 },
    )
    for (let x = -NEGLIGIBLE; x <= 0; x += 0.00017) expect(power(x) / Math.exp(x)).toBeCloseTo(1, 11)
    expect([power(0), power(-0)]).toEqual([1, 1])
  })
})
