import { expect, test } from 'vitest'
import { testStructsOfHeader } from '../testing/c-header'
import * as params from './model-params'
import { Struct } from './struct'

const structs = Object.values(params).filter((value) => value instanceof Struct)
const header = testStructsOfHeader('flashmla_model_params.h', structs)

test('sizes and enumerations agree with the header', () => {
  expect(header).toContain(`sizeof(MlaExpert) == ${params.EXPERT_BYTES},`)
  expect(header).toContain(
    'FLASHMLA_ROW_F32 = 0, FLASHMLA_ROW_BF16 = 1, FLASHMLA_ROW_FP8_656 = 2, FLASHMLA_ROW_FP8_584 = 3',
  )
  expect(header).toContain('FLASHMLA_VALUE_BF16 = 0, FLASHMLA_VALUE_F16 = 1, FLASHMLA_VALUE_F32 = 2')
  expect(params.VALUE_TYPES).toEqual({ bf16: 0, f16: 1, f32: 2 })
  expect(params.ROW_FORMATS).toEqual({ f32: 0, bf16: 1, fp8V32: 2, fp8V4: 3 })
})
