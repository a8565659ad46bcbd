import { expect, test } from 'vitest'
import { testStructsOfHeader } from '../testing/c-header'
import * as params from './params'
import { Struct } from './struct'

const structs = Object.values(params).filter((value) => value instanceof Struct)
const header = testStructsOfHeader('flashmla_params.h', structs)

test('sizes and enumerations agree with the header', () => {
  expect(header).toContain(`sizeof(MlaSplit) == ${params.SPLIT_BYTES},`)
  expect(header).toContain('FLASHMLA_BF16 = 0, FLASHMLA_F16 = 1, FLASHMLA_F32 = 2')
  expect(header).toContain('FLASHMLA_ROWS_BF16 = 0, FLASHMLA_ROWS_F16 = 1, FLASHMLA_FP8_656 = 2')
  expect([params.DTYPES, params.CACHE_FORMATS]).toEqual([
    { bf16: 0, f16: 1, f32: 2 },
    { bf16: 0, f16: 1, fp8: 2 },
  ])
})

test('values are laid out little-endian, and padding is refused', () => {
  const struct = new Struct('S', { a: 'ptr', b: 'i64', c: 'i32', d: 'f32' })
  const bytes = struct.allocate({ a: 0x1_0000_0002n, b: -1, c: -2, d: 0.5 })
  const view = new DataView(bytes.buffer)
  expect(view.getBigUint64(0, true)).toBe(0x1_0000_0002n)
  expect(view.getBigInt64(8, true)).toBe(-1n)
  expect([view.getInt32(16, true), view.getFloat32(20, true)]).toEqual([-2, 0.5])
  struct.write(bytes, { a: null })
  expect(view.getBigUint64(0, true)).toBe(0n)
  expect(() => struct.write(bytes, { z: 1 } as never)).toThrow('S has no z')
  expect(() => new Struct('P', { a: 'i32', b: 'ptr' })).toThrow('P.b is padded')
  expect(() => new Struct('P', { a: 'ptr', b: 'i32' })).toThrow('ends in padding')
})
