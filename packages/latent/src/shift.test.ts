import { InvalidArgumentError } from '@flashmla/spec'
import { describe, expect, it } from 'vitest'
import type { RopeConfig } from './config'
import { bf16Format, f32Format } from './formats'
import { fp8V4Format, fp8V32Format } from './fp8-formats'
import { ropeFrequencies, ropeMagnitude, rotate } from './rope'
import { shiftSlots } from './shift'

const rope: RopeConfig = {
  theta: 10000,
  interleaved: true,
  yarn: { factor: 4, originalMaxPositions: 64, betaFast: 32, betaSlow: 1, mscale: 1, mscaleAllDim: 0.5 },
}

describe.each([f32Format(512, 64), bf16Format(512, 64), fp8V32Format, fp8V4Format])('shiftSlots in $name', (format) => {
  const { kvLoraRank: r, ropeDim } = format
  const width = r + ropeDim
  const rowAt = (slot: number, position: number, interleaved: boolean) => {
    const row = Float32Array.from({ length: width }, (_, i) => Math.sin(i * 0.7 + slot))
    rotate(row, r, ropeFrequencies(ropeDim, rope), position, interleaved, ropeMagnitude(rope))
    return row
  }

  it.each([true, false])('moves rows as if they had been written there (interleaved: %s)', (interleaved) => {
    const page = new Uint8Array(8 * format.bytesPerToken)
    const moved = { ...rope, interleaved }
    for (let slot = 0; slot < 8; slot++) format.encode(rowAt(slot, 100 + slot, interleaved), 0, page, 8, slot)
    const before = page.slice()
    shiftSlots(format, page, 8, [2, 6], -90, moved)
    const [actual, expected, old] = [new Float32Array(width), new Float32Array(width), new Float32Array(width)]
    for (let slot = 0; slot < 8; slot++) {
      const shifted = slot >= 2 && slot < 6
      const fresh = new Uint8Array(format.bytesPerToken)
      format.encode(rowAt(slot, shifted ? 10 + slot : 100 + slot, interleaved), 0, fresh, 1, 0)
      format.decode(fresh, 1, 0, expected, 0)
      format.decode(page, 8, slot, actual, 0)
      format.decode(before, 8, slot, old, 0)
      // The latent part is the same to the bit; the rotary part has been rounded once more: two bf16 steps of 1 … 2 at most.
      expect(actual.subarray(0, r)).toEqual(old.subarray(0, r))
      const tolerance = format.name === 'f32-576' ? 1e-5 : 2 ** -6
      for (let i = r; i < width; i++) expect(Math.abs(actual[i]! - expected[i]!)).toBeLessThan(tolerance)
      if (!shifted) expect(actual).toEqual(old)
    }
  })

  it('there and back again leaves rows where they were', () => {
    const page = new Uint8Array(format.bytesPerToken)
    format.encode(rowAt(0, 3, true), 0, page, 1, 0)
    const [before, after] = [new Float32Array(width), new Float32Array(width)]
    format.decode(page, 1, 0, before, 0)
    shiftSlots(format, page, 1, [0, 1], 40, rope)
    format.decode(page, 1, 0, after, 0)
    expect(after).not.toEqual(before)
    shiftSlots(format, page, 1, [0, 1], -40, rope)
    format.decode(page, 1, 0, after, 0)
    after.forEach((value, i) => {
      expect(Math.abs(value - before[i]!)).toBeLessThan(0.02)
    })
  })

  it('a slot past the page is refused before any is moved', () => {
    const page = new Uint8Array(4 * format.bytesPerToken)
    for (let slot = 0; slot < 4; slot++) format.encode(rowAt(slot, slot, true), 0, page, 4, slot)
    const before = page.slice()
    expect(() => shiftSlots(format, page, 4, [2, 6], -2, rope)).toThrow(InvalidArgumentError)
    expect(() => shiftSlots(format, page, 4, [2, 3.5], -2, rope)).toThrow(InvalidArgumentError)
    expect(page).toEqual(before)
  })
})
