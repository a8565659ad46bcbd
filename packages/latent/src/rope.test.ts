import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { RopeConfig } from './config'
import { ropeFrequencies, ropeMagnitude, ropeTable, rotate, softmaxScale, yarnMagnitude } from './rope'

const plain: RopeConfig = { theta: 10000, interleaved: true }
const v3: RopeConfig = {
  theta: 10000,
  interleaved: true,
  yarn: { factor: 40, originalMaxPositions: 4096, betaFast: 32, betaSlow: 1, mscale: 1, mscaleAllDim: 1 },
}
const row = fc.array(fc.float({ min: -4, max: 4, noNaN: true }), { minLength: 16, maxLength: 16 })
const dot = (a: Float32Array, b: Float32Array) => a.reduce((sum, value, i) => sum + value * b[i]!, 0)

function rotated(values: readonly number[], position: number, interleaved: boolean): Float32Array {
  const x = Float32Array.from(values)
  rotate(x, 0, ropeFrequencies(16, plain), position, interleaved)
  return x
}

describe('rotate', () => {
  it.each([true, false])('makes scores depend on the distance only (interleaved: %s)', (interleaved) => {
    fc.assert(
      fc.property(row, row, fc.nat(500), fc.nat(500), fc.nat(500), (q, k, i, j, shift) => {
        const score = dot(rotated(q, i, interleaved), rotated(k, j, interleaved))
        const moved = dot(rotated(q, i + shift, interleaved), rotated(k, j + shift, interleaved))
        expect(moved).toBeCloseTo(score, 3)
      }),
    )
  })

  it('half-split is interleaved after sorting even and odd columns apart', () => {
    const values = Array.from({ length: 16 }, (_, i) => Math.sin(i + 1))
    const split = [...values.filter((_, i) => i % 2 === 0), ...values.filter((_, i) => i % 2 === 1)]
    const a = [...rotated(values, 77, true)]
    const b = rotated(split, 77, false)
    expect([...a.filter((_, i) => i % 2 === 0), ...a.filter((_, i) => i % 2 === 1)]).toEqual([...b])
  })

  it('turns the columns by the angles of the table', () => {
    const table = ropeTable(12, 16, v3)
    const x = new Float32Array(20).fill(1)
    rotate(x, 3, ropeFrequencies(16, v3), 11, true, ropeMagnitude(v3))
    for (let j = 0; j < 8; j++) {
      const [cos, sin] = [table[11 * 16 + 2 * j]!, table[11 * 16 + 2 * j + 1]!]
      expect(x[3 + 2 * j]).toBeCloseTo(cos - sin, 6)
      expect(x[4 + 2 * j]).toBeCloseTo(cos + sin, 6)
    }
    expect([...x.subarray(0, 3), x[19]]).toEqual([1, 1, 1, 1])
  })
})

describe('YaRN', () => {
  it('keeps fast dimensions, divides slow ones, and blends between (V3: 10 and 23)', () => {
    const [before, after] = [ropeFrequencies(64, plain), ropeFrequencies(64, v3)]
    for (let j = 0; j < 32; j++) {
      const ratio = before[j]! / after[j]!
      if (j <= 10) expect(ratio).toBeCloseTo(1, 12)
      else if (j >= 23) expect(ratio).toBeCloseTo(40, 10)
      else expect(1 / ratio).toBeCloseTo(1 - ((j - 10) / 13) * (1 - 1 / 40), 10)
    }
  })

  it('a factor of 1 changes nothing', () => {
    const rope = { ...v3, yarn: { ...v3.yarn!, factor: 1 } }
    ropeFrequencies(64, rope).forEach((frequency, j) => {
      expect(frequency).toBeCloseTo(ropeFrequencies(64, plain)[j]!, 12)
    })
    expect(ropeMagnitude(rope)).toBe(1)
  })

  it('magnitudes: mscale over mscale_all_dim, plain without both, attention_factor over all', () => {
    const magnitude = (change: object) => ropeMagnitude({ ...v3, yarn: { ...v3.yarn!, ...change } })
    expect(yarnMagnitude(40, 1)).toBeCloseTo(1.3688879454, 9)
    expect(magnitude({})).toBe(1)
    expect(magnitude({ mscale: 1, mscaleAllDim: 0.5 })).toBeCloseTo(1.3688879454 / 1.1844439727, 9)
    expect(magnitude({ mscale: 0, mscaleAllDim: 0 })).toBeCloseTo(1.3688879454, 9)
    expect(magnitude({ attentionFactor: 1.25 })).toBe(1.25)
  })

  it("V3's softmax scale takes mscale_all_dim twice", () => {
    const dims = { qkNopeHeadDim: 128, qkRopeHeadDim: 64 }
    expect(softmaxScale({ ...dims, rope: v3 })).toBeCloseTo(1.3688879454 ** 2 / Math.sqrt(192), 9)
    expect(softmaxScale({ ...dims, rope: plain })).toBeCloseTo(1 / Math.sqrt(192), 12)
  })
})
