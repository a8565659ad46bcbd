import { InvalidArgumentError } from '@flashmla/spec'
import { describe, expect, it } from 'vitest'
import { BlockPool } from './block-pool'
import { PagedKvCache } from './paged-kv-cache'
import { decodeState, encodeState } from './snapshot'

function busy(): PagedKvCache {
  const cache = new PagedKvCache({ numBlocks: 8, pageSize: 2 })
  const done = cache.allocate({ tokens: [1, 2, 3, 4], salt: 'ä' })
  done.commit()
  done.free()
  cache
    .allocate({ tokens: [1, 2, 3, 4, 5], salt: 'ä', priority: 2 })
    .fork()
    .appendToken(6)
  return cache
}

describe('a saved cache', () => {
  it('comes back whole, with its sequences under their ids', () => {
    const cache = busy()
    const copy = PagedKvCache.load(cache.save())
    expect(copy.violations()).toEqual([])
    expect(copy.stats()).toEqual(cache.stats())
    const what = (of: PagedKvCache) =>
      of.sequences.map(({ id, salt, priority, length, blocks }) => [id, salt, priority, length, ...blocks])
    expect(what(copy)).toEqual(what(cache))
    expect(copy.match([1, 2, 3, 4, 9], 'ä')).toBe(4)
  })

  it('is refused when it is cut, changed or something else', () => {
    const bytes = busy().save()
    const changed = bytes.slice()
    changed[changed.length - 1]! ^= 1
    // The last digit of the header's length, which the checksum doesn't cover.
    const longer = bytes.slice()
    longer[bytes.indexOf(10) - 1]! ^= 1
    for (const bad of [
      longer,
      bytes.subarray(0, bytes.length - 1),
      changed,
      new Uint8Array(0),
      new TextEncoder().encode('{}\n'),
    ])
      expect(() => PagedKvCache.load(bad)).toThrow(InvalidArgumentError)
  })

  it('is refused when it contradicts itself', () => {
    const state = decodeState(busy().save())
    state.pool.references[state.sequences[0]!.blocks[0]!]!++
    expect(() => PagedKvCache.load(encodeState(state))).toThrow(/references/)
    const saltless = decodeState(busy().save())
    const sequences = saltless.sequences.map((sequence) => ({ ...sequence, salt: 7 }))
    expect(() => PagedKvCache.load(encodeState({ ...saltless, sequences }))).toThrow(InvalidArgumentError)
  })
})

describe('violations', () => {
  it('tell of a reference that no sequence holds', () => {
    const cache = busy()
    cache.pool.retain(cache.sequences[0]!.blocks[0]!)
    expect(cache.violations()).toHaveLength(1)
  })

  it('allow foreign references to a pool that was given', () => {
    const cache = new PagedKvCache({ pool: new BlockPool(4), pageSize: 2 })
    cache.pool.allocate()
    expect(cache.violations()).toEqual([])
    expect(() => new PagedKvCache({ pool: cache.pool, pageSize: 2 })).toThrow(InvalidArgumentError)
  })
})
