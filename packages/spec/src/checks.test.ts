import { describe, expect, it } from 'vitest'
import type { PagedCache } from './cache-format'
import { checkStep } from './check-step'
import { check } from './checks'
import { FlashMlaError, InvalidArgumentError, InvalidConfigError } from './errors'
import type { DType, Tensor } from './tensor'

const tensor = <D extends DType>(dtype: D, ...shape: number[]): Tensor<D> => ({ dtype, shape, dispose() {} })
const f32 = (...shape: number[]) => tensor('f32', ...shape)
const i32 = (...shape: number[]) => tensor('i32', ...shape)
const weight = (...shape: number[]) => ({ shape, dispose() {} })

describe('check', () => {
  it('lets fitting operands pass, leading dimensions folded', () => {
    check.linear(f32(2, 5), f32(2, 3, 8), weight(5, 24))
    check.headLinear(f32(2, 3, 7), f32(2, 3, 4), weight(3, 7, 4))
    check.copyColumns(f32(2, 3, 10), 4, f32(6, 8), 2, 6)
    check.rotary(f32(4, 3, 24), 5, f32(9, 8, 2), i32(4))
    check.rmsNorm(f32(2, 3, 8), f32(6, 8), f32(8), 1e-6)
    check.argmax(i32(4), f32(4, 9))
    check.embed(f32(0, 6), weight(3, 6), i32(0))
  })

  it('lets only values of the type that fit be written', () => {
    check.write(f32(2, 3), new Float32Array(4), 2)
    check.write(i32(0), new Int32Array(0), 0)
    const wrongType = new Float32Array(1) as never
    expect(() => check.write(i32(4), wrongType, 0)).toThrow('Values of another type are written to an i32 tensor.')
    expect(() => check.write(f32(2, 3), new Float32Array(4), 3)).toThrow("4 values at 3 don't fit a tensor [2,3].")
    for (const offset of [-1, 0.5, Number.NaN])
      expect(() => check.write(f32(4), new Float32Array(1), offset)).toThrow(InvalidArgumentError)
  })

  it('demands a finite softmax scale above 0', () => {
    const cache = { format: { name: 'f32-6', kvLoraRank: 4, ropeDim: 2 } } as PagedCache
    const attend = (scale: number) => check.attention(f32(1, 2, 4), f32(1, 2), f32(1, 2, 6), cache, 1, scale)
    const naive = (scale: number) => check.naiveAttention(f32(1, 2, 3), f32(1, 2, 7), weight(16, 4), cache, 1, scale)
    for (const each of [attend, naive]) {
      each(0.1)
      for (const scale of [0, -1, Number.NaN, Infinity])
        expect(() => each(scale)).toThrow(`ttention: the softmax scale is ${scale}.\nGive a finite number > 0.`)
    }
  })

  it('names the operation and the shapes', () => {
    expect(() => check.linear(f32(2, 5), f32(2, 23), weight(5, 24))).toThrow(
      "linear: the shapes out [2, 5], x [2, 23], weight [5, 24] don't fit together.",
    )
    expect(() => check.copyColumns(f32(2, 4), 3, f32(2, 4), 0, 2)).toThrow('columns [3, 5) are not all in [2, 4]')
    expect(() => check.argmax(f32(4) as never, f32(4, 9))).toThrow('argmax: ids is f32, not i32.')
  })
})

describe('checkStep', () => {
  const capacity = { maxSequences: 2, maxTokens: 4, maxBlocks: 3 }
  const step = {
    queryStart: Int32Array.of(0, 1, 3),
    seqLens: Int32Array.of(5, 0),
    blockTable: Int32Array.of(1, 2, 3, 4),
    blockTableStride: 2,
  }

  it('lets a step within the capacity pass, and the empty one', () => {
    checkStep(step, capacity)
    const none = new Int32Array(0)
    checkStep({ queryStart: Int32Array.of(0), seqLens: none, blockTable: none, blockTableStride: 0 }, capacity)
  })

  it.each([
    [{ seqLens: new Int32Array(3), queryStart: new Int32Array(4) }, "3 sequences are more than the batch's 2."],
    [{ queryStart: Int32Array.of(0, 1) }, 'queryStart has 2 entries for 2 sequences.'],
    [{ queryStart: Int32Array.of(1, 1, 3) }, 'queryStart begins with 1, not 0.'],
    [{ queryStart: Int32Array.of(0, 3, 2) }, 'queryStart falls from 3 to 2 at sequence 1.'],
    [{ queryStart: Int32Array.of(0, 1, 5) }, "5 query rows are more than the batch's 4."],
    [{ seqLens: Int32Array.of(1, -2) }, 'Sequence 1 has the length -2.'],
    [{ blockTable: new Int32Array(3) }, 'The block table holds 3 of 2 × 2 entries.'],
    [{ blockTable: new Int32Array(8), blockTableStride: 4 }, "A block table row of 4 is longer than the batch's 3."],
    [{ blockTableStride: 0.5 }, 'blockTableStride is 0.5.'],
  ])('%o is refused', (change, message) => {
    expect(() => checkStep({ ...step, ...change }, capacity)).toThrow(message)
    expect(() => checkStep({ ...step, ...change }, capacity)).toThrow(InvalidArgumentError)
  })
})

describe('errors', () => {
  it('state the fact, then what to do, and know each other across copies of the package', () => {
    const error = new InvalidConfigError('v_head_dim', 'v_head_dim is missing.')
    expect(error.message.split('\n')).toEqual(['v_head_dim is missing.', error.hint])
    expect([error.name, error.code, error.field]).toEqual(['InvalidConfigError', 'invalid_config', 'v_head_dim'])
    const foreign = Object.assign(new Error('x'), { [Symbol.for('flashmla.error')]: true })
    expect([error, foreign, new Error('x'), null, 'x'].map(FlashMlaError.isInstance)).toEqual([
      true,
      true,
      false,
      false,
      false,
    ])
  })
})
