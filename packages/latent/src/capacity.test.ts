import { InvalidArgumentError } from '@flashmla/spec'
import { describe, expect, it } from 'vitest'
import { cacheCapacity, capacityTable, formatsFor } from './capacity'

const v3 = {
  numLayers: 61,
  numHeads: 128,
  kvLoraRank: 512,
  qkNopeHeadDim: 128,
  qkRopeHeadDim: 64,
  vHeadDim: 128,
}

describe('cacheCapacity', () => {
  it("V3's bytes per token, from the published dimensions", () => {
    const rows = cacheCapacity(v3, { memoryBytes: 2 ** 30 })
    expect(
      rows.map(({ name, bytesPerTokenPerLayer, bytesPerToken, tokens }) => [
        name,
        bytesPerTokenPerLayer,
        bytesPerToken,
        tokens,
      ]),
    ).toEqual([
      ['multi-head, 128 heads', 81920, 4997120, 214],
      ['grouped-query, 8 heads', 5120, 312320, 3437],
      ['f32-576', 2304, 140544, 7639],
      ['bf16-576', 1152, 70272, 15279],
      ['fp8-656', 656, 40016, 26832],
    ])
    expect(rows[3]!.timesSmaller).toBeCloseTo(71.11, 2)
  })

  it('offers the fixed formats only where the rows are as wide', () => {
    const names = (kvLoraRank: number) => formatsFor({ ...v3, kvLoraRank }).map(({ name }) => name)
    expect(names(448)).toEqual(['f32-512', 'bf16-512', 'fp8-584'])
    expect(names(256)).toEqual(['f32-320', 'bf16-320'])
  })

  it('takes another grouping, and no more groups than heads', () => {
    expect(cacheCapacity(v3, { groupedQueryHeads: 2 })[1]).toMatchObject({
      bytesPerTokenPerLayer: 1280,
      tokens: undefined,
    })
    expect(cacheCapacity({ ...v3, numHeads: 4 })[1]!.name).toBe('grouped-query, 4 heads')
    for (const groupedQueryHeads of [0, 129, 1.5]) {
      expect(() => cacheCapacity(v3, { groupedQueryHeads })).toThrow(InvalidArgumentError)
    }
    for (const memoryBytes of [-1, Number.NaN])
      expect(() => cacheCapacity(v3, { memoryBytes })).toThrow(InvalidArgumentError)
  })

  it('prints as an aligned table', () => {
    expect(capacityTable(cacheCapacity(v3, { memoryBytes: 80e9 }))).toBe(
      [
        'cache                   bytes/token  per layer  smaller     tokens',
        'multi-head, 128 heads     4,997,120     81,920     1.0×     16,009',
        'grouped-query, 8 heads      312,320      5,120    16.0×    256,147',
        'f32-576                     140,544      2,304    35.6×    569,216',
        'bf16-576                     70,272      1,152    71.1×  1,138,433',
        'fp8-656                      40,016        656   124.9×  1,999,200',
      ].join('\n'),
    )
    expect(capacityTable(cacheCapacity(v3)).split('\n')[0]).toBe(
      'cache                   bytes/token  per layer  smaller',
    )
  })
})
