import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import * as params from './params'
import { Struct } from './struct'

const header = readFileSync(new URL('../../../../kernels/include/flashmla_params.h', import.meta.url), 'utf8')
const TYPES = { int64_t: 'i64', int32_t: 'i32', float: 'f32' } as const

/** Fields of a C struct as the header writes them, with the offset that its comment claims. */
function parse(name: string) {
  const body = new RegExp(`struct ${name} \\{([^}]*)\\}`).exec(header)![1]!
  return [...body.matchAll(/^ {2}(?:const )?(\w+)(\*?) (\w+);\s*\/\/\s*(\d+)/gm)].map(
    ([, type, star, field, offset]) => ({
      field: field!,
      type: star ? 'ptr' : TYPES[type as keyof typeof TYPES],
      offset: Number(offset),
    }),
  )
}

const structs = Object.values(params).filter((value) => value instanceof Struct)

test.each(structs.map((struct) => [struct.name, struct] as const))('%s is the struct of the header', (name, struct) => {
  const expected = parse(name)
  expect(expected.length).toBeGreaterThan(3)
  const actual = Object.entries(struct.fields).map(([field, type]) => ({
    field,
    type,
    offset: (struct.offsets as Map<string, number>).get(field),
  }))
  expect(actual).toEqual(expected)
  expect(header).toContain(`static_assert(sizeof(${name}) == ${struct.bytes},`)
})

test('every struct that a kernel takes is mirrored, and the enumerations agree', () => {
  const names = [...header.matchAll(/^struct (\w+Params) /gm)].map((match) => match[1])
  expect(structs.map(({ name }) => name).sort()).toEqual(names.sort())
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
