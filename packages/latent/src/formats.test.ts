import { readFileSync } from 'node:fs'
import type { CacheFormat } from '@flashmla/spec'
import { InvalidArgumentError } from '@flashmla/spec'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { e4m3ToFloat, e8m0ToFloat } from './float8'
import { bf16Format, f32Format } from './formats'
import { fp8V4Format, fp8V32Format } from './fp8-formats'

const golden = JSON.parse(readFileSync(new URL('../fixtures/formats.json', import.meta.url), 'utf8'))
const formats = [fp8V32Format, fp8V4Format, bf16Format(512, 64), bf16Format(448, 64), f32Format(512, 64)]
const widthOf = (format: CacheFormat) => format.kvLoraRank + format.ropeDim

/** The row of fixtures/make_golden.py. */
function goldenRow(width: number): Float32Array {
  const row = Float32Array.from(
    { length: width },
    (_, i) => (Math.round(Math.sin(i * 0.37) * 4096) / 4096) * 2 ** ((i % 23) - 12),
  )
  row.fill(0, 64, 128)
  row[200] = -12345.678
  return row
}

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')

describe('golden rows', () => {
  it.each([
    [fp8V32Format, 1, 0],
    [fp8V4Format, 3, 1],
    [bf16Format(512, 64), 1, 0],
    [bf16Format(448, 64), 1, 0],
  ])('$name encodes to the golden bytes', (format, pageSize, slot) => {
    const page = new Uint8Array(pageSize * format.bytesPerToken)
    format.encode(goldenRow(widthOf(format)), 0, page, pageSize, slot)
    expect(hex(page)).toBe(golden[format.name])
  })

  it('the formats have the published sizes', () => {
    expect(formats.map(({ name, bytesPerToken }) => [name, bytesPerToken])).toEqual([
      ['fp8-656', 656],
      ['fp8-584', 584],
      ['bf16-576', 1152],
      ['bf16-512', 1024],
      ['f32-576', 2304],
    ])
  })
})

describe.each(formats)('$name', (format) => {
  const width = widthOf(format)

  it('byteRanges cover a page exactly once, and encode touches its own slot only', () => {
    for (const pageSize of [1, 16, 64]) {
      const owners = new Int32Array(pageSize * format.bytesPerToken).fill(-1)
      for (let slot = 0; slot < pageSize; slot++) {
        for (const { offset, length } of format.byteRanges(pageSize, slot)) {
          for (let i = offset; i < offset + length; i++) {
            expect(owners[i]).toBe(-1)
            owners[i] = slot
          }
        }
      }
      expect(owners.includes(-1)).toBe(false)
      for (let slot = 0; slot < pageSize; slot += 7) {
        const page = new Uint8Array(owners.length).fill(0xa5)
        format.encode(goldenRow(width), 0, page, pageSize, slot)
        expect(page.some((byte, i) => byte !== 0xa5 && owners[i] !== slot)).toBe(false)
      }
    }
  })

  it('encoding what was decoded gives the same values, at any offset', () => {
    fc.assert(
      fc.property(
        fc.array(fc.noShrink(fc.float({ noNaN: true, min: -(2 ** 118), max: 2 ** 118 })), {
          minLength: width,
          maxLength: width,
        }),
        fc.constantFrom(1, 3, 64),
        fc.nat(5),
        (values, pageSize, pad) => {
          const slot = pageSize - 1
          const source = new Float32Array(pad + width)
          source.set(values, pad)
          const page = new Uint8Array(pageSize * format.bytesPerToken)
          const once = new Float32Array(pad + width)
          const twice = new Float32Array(pad + width)
          format.encode(source, pad, page, pageSize, slot)
          format.decode(page, pageSize, slot, once, pad)
          format.encode(once, pad, page, pageSize, slot)
          format.decode(page, pageSize, slot, twice, pad)
          expect(twice).toEqual(once)
        },
      ),
      { numRuns: 50 },
    )
  })

  it('NaN and infinities stay what and where they are', () => {
    const row = goldenRow(width)
    row[3] = Number.NaN
    row[300] = Number.NEGATIVE_INFINITY
    row[width - 1] = Number.NaN
    row[width - 2] = Number.POSITIVE_INFINITY
    const page = new Uint8Array(format.bytesPerToken)
    const back = new Float32Array(width)
    format.encode(row, 0, page, 1, 0)
    format.decode(page, 1, 0, back, 0)
    expect(Array.from(back, (v, i) => (Number.isFinite(v) ? '' : `${i}:${v}`)).filter(Boolean)).toEqual([
      '3:NaN',
      '300:-Infinity',
      `${width - 2}:Infinity`,
      `${width - 1}:NaN`,
    ])
  })

  it('refuses a slot, page or row that does not fit, and writes nothing', () => {
    const page = new Uint8Array(2 * format.bytesPerToken)
    const row = new Float32Array(width).fill(1)
    for (const call of [
      () => format.encode(row, 0, page, 2, 2),
      () => format.encode(row, 0, page, 2, -1),
      () => format.encode(row, 0, page, 2, 0.5),
      () => format.encode(row, 0, page, 3, 0),
      () => format.encode(row, 1, page, 2, 0),
      () => format.decode(page, 2, 2, row, 0),
      () => format.decode(page, 1, 0, row, 0),
      () => format.decode(page, 2, 0, row, 1),
    ]) {
      expect(call).toThrow(InvalidArgumentError)
    }
    expect(page.every((byte) => byte === 0)).toBe(true)
  })
})

describe.each([
  [fp8V32Format, 128],
  [fp8V4Format, 64],
] as const)('$name tiles', (format, tile) => {
  it('is within half an e4m3 step of its tile', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: -30, max: 30 }),
        fc.infiniteStream(fc.float({ min: -1, max: 1, noNaN: true })),
        (exponent, stream) => {
          const values = Float32Array.from({ length: widthOf(format) }, () => stream.next().value * 2 ** exponent)
          const page = new Uint8Array(format.bytesPerToken)
          const back = new Float32Array(values.length)
          format.encode(values, 0, page, 1, 0)
          format.decode(page, 1, 0, back, 0)
          for (let start = 0; start < format.kvLoraRank; start += tile) {
            const max = values.subarray(start, start + tile).reduce((a, b) => Math.max(a, Math.abs(b)), 0)
            const scale = Math.max(2 ** Math.ceil(Math.log2(max / 448)), 2 ** -13)
            for (let i = start; i < start + tile; i++) {
              const step = Math.max(Math.abs(values[i]!) / 16, 2 ** -10 * scale)
              expect(Math.abs(back[i]! - values[i]!)).toBeLessThanOrEqual(step)
            }
          }
        },
      ),
      { numRuns: 20 },
    )
  })

  it('decodes all 256 e4m3 bytes under a scale', () => {
    const row = new Uint8Array(format.bytesPerToken)
    const back = new Float32Array(widthOf(format))
    for (let first = 0; first < 256; first += tile) {
      for (let i = 0; i < tile; i++) row[i] = first + i
      if (format === fp8V32Format) new DataView(row.buffer).setFloat32(512, 0.25, true)
      else row[576] = 125
      format.decode(row, 1, 0, back, 0)
      for (let i = 0; i < tile; i++) expect(back[i]).toBe(e4m3ToFloat(first + i) * 0.25)
    }
  })
})

it('fp8-584 decodes all 256 e8m0 scale bytes', () => {
  const page = new Uint8Array(584)
  page[0] = 0x38
  const back = new Float32Array(512)
  for (let byte = 0; byte < 256; byte++) {
    page[576] = byte
    fp8V4Format.decode(page, 1, 0, back, 0)
    expect(back[0]).toBe(e8m0ToFloat(byte))
  }
})
