import { InvalidArgumentError } from '@flashmla/spec'
import { describe, expect, it } from 'vitest'
import { assertClose, assertSame, assertThrows, ContractError } from './compare'

const tolerance = { abs: 0.01, rel: 0.01, l2: 0.01 }
const close = (actual: number[], expected: number[]) => assertClose('x', actual, expected, [2, 2], tolerance)

describe('assertClose', () => {
  it('accepts what is within abs or rel', () => {
    close([1, 1000, 0.005, 0], [1.001, 1005, 0, 0])
    close([Number.NaN, -Infinity, 1, 2], [Number.NaN, -Infinity, 1, 2])
  })

  it('names places of NaN and infinity before any difference', () => {
    expect(() => close([99, 2, Number.NaN, 4], [1, 2, 3, 4])).toThrow('x[1, 0] is NaN, not 3.')
    expect(() => close([99, 2, 3, 4], [1, 2, 3, Number.NaN])).toThrow('x[1, 1] is 4, not NaN.')
    expect(() => close([1, Infinity, 3, 4], [1, -Infinity, 3, 4])).toThrow('x[0, 1] is Infinity, not -Infinity.')
  })

  it('names the worst place', () => {
    expect(() => close([1.1, 2, 5, 4], [1, 2, 3, 4])).toThrow('x[1, 0] is 5, not 3: off by 2')
  })

  it('sums small differences up as relative L2', () => {
    const loose = { abs: 0.05, rel: 0, l2: 0.01 }
    expect(() => assertClose('x', [1.04, 1.04], [1, 1], [2], loose)).toThrow('relative L2')
    assertClose('x', [1.04, 100], [1, 100], [2], loose)
  })

  it('refuses another number of elements', () => {
    expect(() => close([1, 2, 3], [1, 2, 3, 4])).toThrow('x has 3 elements, not 4.')
    expect(() => assertSame('x', [1], [1, 2])).toThrow('x has 1 elements, not 2.')
  })
})

it('assertSame tells zero from minus zero', () => {
  assertSame('x', [0, Number.NaN], [0, Number.NaN])
  expect(() => assertSame('x', [0, -0], [0, 0])).toThrow(ContractError)
})

it('assertThrows wants the code, thrown or rejected', async () => {
  const refuse = () => {
    throw new InvalidArgumentError('No.', 'Do not.')
  }
  await assertThrows('call', 'invalid_argument', refuse)
  await assertThrows('call', 'invalid_argument', async () => refuse())
  await expect(assertThrows('call', 'disposed', refuse)).rejects.toThrow('threw the code invalid_argument')
  await expect(assertThrows('call', 'disposed', () => 1)).rejects.toThrow('was accepted')
})
