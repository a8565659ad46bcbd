import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { E4M3_MAX, e4m3ToFloat, e8m0ToFloat, floatToE4m3, floatToE8m0 } from './float8'

const golden = JSON.parse(readFileSync(new URL('../fixtures/formats.json', import.meta.url), 'utf8'))
const bytes = Array.from({ length: 256 }, (_, byte) => byte)
const orNaN = (values: (number | null)[]) => values.map((value) => value ?? Number.NaN)

describe('e4m3', () => {
  it('decodes all 256 bytes to the golden values', () => {
    expect(bytes.map(e4m3ToFloat)).toEqual(orNaN(golden.e4m3Values))
  })

  it('encodes every decoded byte back to itself', () => {
    expect(bytes.map((byte) => floatToE4m3(e4m3ToFloat(byte)) & 0x7f)).toEqual(bytes.map((byte) => byte & 0x7f))
    const numbers = bytes.filter((byte) => (byte & 0x7f) !== 0x7f)
    expect(numbers.map((byte) => floatToE4m3(e4m3ToFloat(byte)))).toEqual(numbers)
  })

  it('rounds every value, midpoint and neighbour of a midpoint as the golden vectors do', () => {
    const inputs = new Float32Array(Uint32Array.from(golden.e4m3Rounding.bits).buffer)
    expect(Array.from(inputs, floatToE4m3)).toEqual(golden.e4m3Rounding.bytes)
  })

  it('saturates past ±448 and keeps NaN', () => {
    for (const value of [449, 464, 465, 1e30, Number.POSITIVE_INFINITY]) {
      expect([value, floatToE4m3(value), floatToE4m3(-value)]).toEqual([value, 0x7e, 0xfe])
    }
    expect(floatToE4m3(Number.NaN) & 0x7f).toBe(0x7f)
  })

  it('picks the nearest of all values, the even byte on a tie', () => {
    const numbers = bytes.slice(0, 0x7f)
    fc.assert(
      fc.property(fc.float({ min: -E4M3_MAX, max: E4M3_MAX, noNaN: true }), (value) => {
        const distance = (byte: number) => Math.abs(Math.abs(value) - e4m3ToFloat(byte))
        const best = numbers.reduce((a, b) =>
          distance(b) < distance(a) || (distance(b) === distance(a) && b % 2 === 0) ? b : a,
        )
        expect(floatToE4m3(value) & 0x7f).toBe(best)
        expect(floatToE4m3(value) & 0x80).toBe(value < 0 || Object.is(value, -0) ? 0x80 : 0)
      }),
    )
  })
})

describe('e8m0', () => {
  it('decodes all 256 bytes to the golden values and encodes them back', () => {
    expect(bytes.map(e8m0ToFloat)).toEqual(orNaN(golden.e8m0Values))
    expect(bytes.map((byte) => floatToE8m0(e8m0ToFloat(byte)))).toEqual(bytes)
  })

  it('takes the next power of two', () => {
    for (let byte = 1; byte < 255; byte++) {
      const above = Math.fround(e8m0ToFloat(byte) * (1 + 2 ** -20))
      expect([byte, floatToE8m0(above)]).toEqual([byte, Math.min(byte + 1, 254)])
    }
    expect([0, -0, 2 ** -140, -1, Number.NaN, Number.POSITIVE_INFINITY].map(floatToE8m0)).toEqual([
      0, 0, 0, 255, 255, 254,
    ])
  })
})
