import { bench, describe } from 'vitest'
import { bf16Format, f32Format } from './formats'
import { fp8V4Format, fp8V32Format } from './fp8-formats'

/** One page of 64 rows an iteration. */
describe.each([fp8V32Format, fp8V4Format, bf16Format(512, 64), f32Format(512, 64)])('$name', (format) => {
  const width = format.kvLoraRank + format.ropeDim
  const rows = Float32Array.from({ length: 64 * width }, (_, i) => Math.sin(i))
  const page = new Uint8Array(64 * format.bytesPerToken)
  bench('encode a page of 64', () => {
    for (let slot = 0; slot < 64; slot++) format.encode(rows, slot * width, page, 64, slot)
  })
  bench('decode a page of 64', () => {
    for (let slot = 0; slot < 64; slot++) format.decode(page, 64, slot, rows, slot * width)
  })
})
