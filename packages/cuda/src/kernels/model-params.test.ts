import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import * as params from './model-params'
import { Struct } from './struct'

const header = readFileSync(new URL('../../../../kernels/include/flashmla_model_params.h', import.meta.url), 'utf8')
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
  const actual = Object.entries(struct.fields).map(([field, type]) => ({
    field,
    type,
    offset: (struct.offsets as Map<string, number>).get(field),
  }))
  expect(actual).toEqual(parse(name))
  expect(header).toContain(`static_assert(sizeof(${name}) == ${struct.bytes},`)
})

test('every struct that a kernel takes is mirrored, and the enumerations agree', () => {
  const names = [...header.matchAll(/^struct (\w+Params) /gm)].map((match) => match[1])
  expect(structs.map(({ name }) => name).sort()).toEqual(names.sort())
  expect(header).toContain(`sizeof(MlaExpert) == ${params.EXPERT_BYTES},`)
  expect(header).toContain(
    'FLASHMLA_ROW_F32 = 0, FLASHMLA_ROW_BF16 = 1, FLASHMLA_ROW_FP8_656 = 2, FLASHMLA_ROW_FP8_584 = 3',
  )
  expect(header).toContain('FLASHMLA_VALUE_BF16 = 0, FLASHMLA_VALUE_F16 = 1, FLASHMLA_VALUE_F32 = 2')
  expect(params.VALUE_TYPES).toEqual({ bf16: 0, f16: 1, f32: 2 })
  expect(params.ROW_FORMATS).toEqual({ f32: 0, bf16: 1, fp8V32: 2, fp8V4: 3 })
})
