import { InvalidArgumentError } from '@flashmla/spec'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { absorbKvB } from './absorb'
import type { PartialAttention } from './merge'
import { mergeAttention } from './merge'
import { rmsNorm } from './norm'
import { absorbQuery, downProject, expandOutput, project, upProject } from './project'
import { softmaxScale } from './rope'

const config = {
  numHeads: 3,
  kvLoraRank: 12,
  qkNopeHeadDim: 6,
  qkRopeHeadDim: 4,
  vHeadDim: 5,
  rmsNormEps: 1e-6,
  rope: { theta: 100, interleaved: true },
}
const { numHeads: h, kvLoraRank: r, qkNopeHeadDim: nope, qkRopeHeadDim: ropeDim, vHeadDim: v } = config
const hiddenSize = 16

/** Deterministic values in [−1, 1]. */
const values = (n: number, seed: number) =>
  Float32Array.from({ length: n }, (_, i) => Math.sin(i * 12.9898 + seed * 78.233))

/** Softmax attention of q `[n, h, d]` over keys `[t, kh, d]` and values `[t, kh, w]`, kh = h or 1, tokens [from, to). */
function attend(
  q: Float32Array,
  keys: Float32Array,
  vals: Float32Array,
  [d, w, kh]: readonly [number, number, number],
  [from, to]: readonly [number, number],
): PartialAttention {
  const rows = q.length / d
  const [out, lse] = [new Float32Array(rows * w), new Float32Array(rows).fill(-Infinity)]
  for (let row = 0; row < rows; row++) {
    const at = (t: number) => t * kh + ((row % h) % kh)
    const powers = Array.from({ length: to - from }, (_, i) => {
      let score = 0
      for (let c = 0; c < d; c++) score += q[row * d + c]! * keys[at(from + i) * d + c]!
      return Math.exp(score * softmaxScale(config))
    })
    const sum = powers.reduce((a, b) => a + b, 0)
    lse[row] = Math.log(sum)
    powers.forEach((power, i) => {
      for (let c = 0; c < w; c++) out[row * w + c]! += (power / sum) * vals[at(from + i) * w + c]!
    })
  }
  return { out, lse }
}

function expectClose(actual: Float32Array, expected: Float32Array): void {
  expect(actual.length).toBe(expected.length)
  const worst = actual.reduce((max, value, i) => Math.max(max, Math.abs(value - expected[i]!)), 0)
  expect(worst).toBeLessThan(1e-5)
}

describe('one layer of MLA', () => {
  it('the absorbed form equals the naive one', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 9 }),
        fc.integer({ min: 1, max: 3 }),
        fc.nat(1000),
        (tokens, queries, seed) => {
          const kvB = values(h * (nope + v) * r, seed)
          const { uk, uv } = absorbKvB(kvB, h, nope, v, r)
          const hidden = values(tokens * hiddenSize, seed + 1)
          const positions = Array.from({ length: tokens }, (_, t) => t)
          const rows = downProject(
            hidden,
            values((r + ropeDim) * hiddenSize, seed + 2),
            values(r, seed + 3),
            positions,
            config,
          )
          const q = values(queries * h * (nope + ropeDim), seed + 4)

          const { keys, values: vals } = upProject(rows, kvB, config)
          const naive = attend(q, keys, vals, [nope + ropeDim, v, h], [0, tokens])

          const latents = Float32Array.from(
            { length: tokens * r },
            (_, i) => rows[Math.floor(i / r) * (r + ropeDim) + (i % r)]!,
          )
          const absorbed = attend(absorbQuery(q, uk, config), rows, latents, [r + ropeDim, r, 1], [0, tokens])
          expectClose(expandOutput(absorbed.out, uv, config), naive.out)
          expectClose(absorbed.lse, naive.lse)
        },
      ),
      { numRuns: 30 },
    )
  })

  it('down projection norms the latent and turns the rotary part by its position', () => {
    const hidden = values(2 * hiddenSize, 1)
    hidden.copyWithin(hiddenSize, 0, hiddenSize)
    const kvA = values((r + ropeDim) * hiddenSize, 2)
    const rows = downProject(hidden, kvA, new Float32Array(r).fill(1), [0, 5], config)
    const raw = project(hidden.subarray(0, hiddenSize), kvA, r + ropeDim, hiddenSize)
    const width = r + ropeDim
    expectClose(rows.subarray(0, r), rmsNorm(raw.subarray(0, r), new Float32Array(r).fill(1), 1e-6))
    expectClose(rows.subarray(r, width), raw.subarray(r))
    expectClose(rows.subarray(width, width + r), rows.subarray(0, r))
    const [x, y] = [raw[r]!, raw[r + 1]!]
    expect(rows[width + r]).toBeCloseTo(x * Math.cos(5) - y * Math.sin(5), 5)
    expect(rows[width + r + 1]).toBeCloseTo(y * Math.cos(5) + x * Math.sin(5), 5)
  })

  it('no tokens give no rows', () => {
    const none = new Float32Array(0)
    const rows = downProject(none, values((r + ropeDim) * hiddenSize, 1), values(r, 2), [], config)
    expect(rows).toHaveLength(0)
    expect(upProject(rows, values(h * (nope + v) * r, 3), config).keys).toHaveLength(0)
  })

  it('sizes that do not fit are refused', () => {
    const some = new Float32Array(7)
    for (const call of [
      () => project(some, some, 2, 3),
      () => project(new Float32Array(3), some, 2, 3),
      () => upProject(some, some, config),
      () => absorbQuery(some, some, config),
      () => expandOutput(some, some, config),
      () => rmsNorm(some, new Float32Array(2), 0),
      () => rmsNorm(some, new Float32Array(0), 0),
      // Half a norm, and positions that are no rows.
      () => downProject(values(16, 1), values((r + ropeDim) * 16, 2), values(r / 2, 3), [0], config),
      () => downProject(values(5, 1), values((r + ropeDim) * 2.5, 2), values(r, 3), [0, 1], config),
    ]) {
      expect(call).toThrow(InvalidArgumentError)
    }
  })
})

describe('mergeAttention', () => {
  it('equals attention over all tokens, however they are cut', () => {
    const tokens = 12
    const [q, keys, vals] = [values(2 * h * 7, 1), values(tokens * h * 7, 2), values(tokens * h * 5, 3)]
    const all = attend(q, keys, vals, [7, 5, h], [0, tokens])
    fc.assert(
      fc.property(fc.array(fc.nat(tokens), { maxLength: 5 }), (cuts) => {
        const edges = [0, ...cuts.sort((a, b) => a - b), tokens]
        const parts = edges.slice(1).map((to, i) => {
          const part = attend(q, keys, vals, [7, 5, h], [edges[i]!, to])
          // What a part without tokens holds is not read.
          return edges[i] === to ? { ...part, out: part.out.fill(Number.NaN) } : part
        })
        const merged = mergeAttention(parts)
        expectClose(merged.out, all.out)
        expectClose(merged.lse, all.lse)
      }),
    )
  })

  it('nothing merged with nothing is nothing, and large lse do not overflow', () => {
    const empty = { out: Float32Array.of(0, 0), lse: Float32Array.of(-Infinity) }
    expect(mergeAttention([empty, empty])).toEqual(empty)
    const big = { out: Float32Array.of(1, 2), lse: Float32Array.of(5000) }
    const { out, lse } = mergeAttention([big, empty, { out: Float32Array.of(3, 4), lse: Float32Array.of(5000) }])
    expect([...out]).toEqual([2, 3])
    expect(lse[0]).toBeCloseTo(5000 + Math.LN2, 3)
  })

  it('refuses no parts and parts of other shapes', () => {
    const part = { out: new Float32Array(4), lse: new Float32Array(2) }
    expect(() => mergeAttention([])).toThrow(InvalidArgumentError)
    expect(() => mergeAttention([part, { out: new Float32Array(4), lse: new Float32Array(1) }])).toThrow(
      InvalidArgumentError,
    )
    expect(() => mergeAttention([part, { out: new Float32Array(6), lse: new Float32Array(2) }])).toThrow(
      InvalidArgumentError,
    )
  })
})

describe('rmsNorm', () => {
  it('norms each row on its own', () => {
    expectClose(
      rmsNorm(Float32Array.of(3, 4, 0, 0), Float32Array.of(1, 2), 0.5),
      Float32Array.of(3 / Math.sqrt(13), 8 / Math.sqrt(13), 0, 0),
    )
  })
})
