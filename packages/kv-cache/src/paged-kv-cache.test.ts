import { InvalidArgumentError, OutOfPagesError } from '@flashmla/spec'
import { describe, expect, it } from 'vitest'
import type { EvictionPolicyName } from './eviction/policy'
import { PagedKvCache } from './paged-kv-cache'

const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i)

function finished(
  cache: PagedKvCache,
  tokens: number[],
  options: { salt?: string; priority?: number } = {},
): Int32Array {
  const sequence = cache.allocate({ tokens, ...options })
  sequence.commit()
  const blocks = sequence.blocks.slice()
  sequence.free()
  return blocks
}

describe('the prefix cache', () => {
  it('shares the full blocks of a prefix among live requests, and never the last token', () => {
    const cache = new PagedKvCache({ numBlocks: 64, pageSize: 4 })
    const first = cache.allocate({ tokens: range(0, 12) })
    expect(first.cachedTokens).toBe(0)
    first.commit()
    const others = range(0, 5).map(() => cache.allocate({ tokens: range(0, 12) }))
    for (const other of others) {
      expect(other.cachedTokens).toBe(8)
      expect(other.blocks.slice(0, 2)).toEqual(first.blocks.slice(0, 2))
    }
    expect(cache.stats()).toMatchObject({ used: 3 + 5, hits: 10, misses: 2, sequences: 6 })
    expect(cache.violations()).toEqual([])
  })

  it('finds nothing that is not committed, nor under another salt, nor after a different start', () => {
    const cache = new PagedKvCache({ numBlocks: 16, pageSize: 4 })
    const sequence = cache.allocate({ tokens: range(0, 8), salt: 'a' })
    expect(cache.match(range(0, 9), 'a')).toBe(0)
    sequence.commit(7)
    expect(cache.match(range(0, 9), 'a')).toBe(4)
    sequence.commit()
    expect(cache.match(range(0, 9), 'a')).toBe(8)
    expect(cache.match(range(0, 9), 'b')).toBe(0)
    expect(cache.match(range(0, 9))).toBe(0)
    expect(cache.match([9, ...range(1, 9)], 'a')).toBe(0)
    expect(cache.match([...range(4, 8), 1], 'a')).toBe(0)
  })

  it('gives no false hit when every hash collides', () => {
    const cache = new PagedKvCache({ numBlocks: 32, pageSize: 2, hash: () => 7 })
    const a = finished(cache, [1, 2, 3, 4, 5])
    const b = finished(cache, [3, 4, 3, 4, 5])
    expect(cache.match([1, 2, 3, 4, 9])).toBe(4)
    expect(cache.match([3, 4, 3, 4, 9])).toBe(4)
    expect(cache.match([3, 4, 1, 2, 9])).toBe(2)
    expect(cache.match([2, 1, 3, 4, 9])).toBe(0)
    expect(new Set([...a.slice(0, 2), ...b.slice(0, 2)]).size).toBe(4)
    expect(cache.violations()).toEqual([])
  })

  it('exchanges a block for the one that another stored with the same content', () => {
    const cache = new PagedKvCache({ numBlocks: 8, pageSize: 4 })
    const [a, b] = [cache.allocate({ tokens: range(0, 6) }), cache.allocate({ tokens: range(0, 6) })]
    a.commit()
    const { revision } = b
    b.commit()
    expect(b.blocks[0]).toBe(a.blocks[0])
    expect(b.revision).toBeGreaterThan(revision)
    expect(cache.stats().used).toBe(3)
  })

  it('exchanges no block under the forks that share what follows it', () => {
    const cache = new PagedKvCache({ numBlocks: 4, pageSize: 2 })
    const a = cache.allocate({ tokens: range(0, 4) })
    const b = a.fork()
    finished(cache, range(0, 2))
    a.commit()
    expect(cache.violations()).toEqual([])
    a.free()
    expect(cache.violations()).toEqual([])
    // What counts as free can be had.
    const rest = cache.allocate({ tokens: range(50, 50 + 2 * cache.pool.numFree) })
    expect([...rest.blocks, ...b.blocks].sort()).toEqual([0, 1, 2, 3])
    rest.free()
    b.commit()
    expect(cache.match(range(0, 5))).toBe(4)
    expect(cache.violations()).toEqual([])
  })

  it('finds nothing that a sequence held when it was cleared, committed or not', () => {
    const cache = new PagedKvCache({ numBlocks: 16, pageSize: 2 })
    const live = cache.allocate({ tokens: range(0, 5) })
    cache.clear()
    const fork = live.fork()
    const copy = PagedKvCache.load(cache.save())
    for (const sequence of [live, fork, ...copy.sequences]) {
      sequence.commit()
      // Rolled back into its first block, which is from before all the same.
      sequence.truncate(1)
      sequence.appendTokens(range(1, 5))
      sequence.commit()
    }
    expect(cache.match(range(0, 9))).toBe(0)
    expect(copy.match(range(0, 9))).toBe(0)
    finished(cache, range(0, 5))
    expect(cache.match(range(0, 9))).toBe(4)
    expect(cache.violations()).toEqual([])
  })

  it('stores nothing more once it is detached', () => {
    const cache = new PagedKvCache({ numBlocks: 4, pageSize: 2 })
    const [a, b] = [cache.allocate({ tokens: [1, 2] }), cache.allocate({ tokens: [1, 2] })]
    cache.detach()
    const next = new PagedKvCache({ pool: cache.pool, pageSize: 2 })
    a.commit()
    a.free()
    const other = next.allocate({ tokens: [7, 8] })
    b.commit()
    expect(b.blocks[0]).not.toBe(other.blocks[0])
    expect(cache.stats().stored).toBe(0)
  })

  it('keeps freed blocks until their memory is needed, then gives up the tail first', () => {
    const cache = new PagedKvCache({ numBlocks: 4, pageSize: 2 })
    finished(cache, range(0, 8))
    expect(cache.stats()).toMatchObject({ used: 0, free: 4, cached: 4 })
    const other = cache.allocate({ tokens: [100, 101, 102] })
    expect(cache.match(range(0, 9))).toBe(4)
    expect(cache.stats()).toMatchObject({ used: 2, cached: 2, evictions: 2 })
    other.free()
    expect(cache.violations()).toEqual([])
  })

  it('writes no stored block in place after a rollback into it', () => {
    const cache = new PagedKvCache({ numBlocks: 4, pageSize: 4 })
    const sequence = cache.allocate({ tokens: range(0, 4) })
    sequence.commit()
    const [stored] = sequence.blocks
    sequence.truncate(3)
    expect(sequence.appendToken(9)).toEqual({ from: stored, to: sequence.blocks[0], slots: 3 })
    expect(range(0, 4).map((i) => sequence.token(i))).toEqual([0, 1, 2, 9])
    expect(cache.match(range(0, 5))).toBe(4)
    sequence.commit()
    expect(cache.match([0, 1, 2, 9, 0])).toBe(4)
    expect(cache.violations()).toEqual([])
  })

  it('stores no speculated token that was rolled back', () => {
    const cache = new PagedKvCache({ numBlocks: 8, pageSize: 4 })
    const sequence = cache.allocate({ tokens: [0, 1] })
    sequence.appendTokens([2, 7, 8, 9])
    sequence.truncate(3)
    sequence.appendToken(3)
    sequence.commit()
    expect(cache.match([0, 1, 2, 7, 0])).toBe(0)
    expect(cache.match([0, 1, 2, 3, 0])).toBe(4)
  })

  it('can be switched off', () => {
    const cache = new PagedKvCache({ numBlocks: 8, pageSize: 4, prefixCache: false })
    finished(cache, range(0, 8))
    expect(cache.allocate({ tokens: range(0, 8) }).cachedTokens).toBe(0)
    expect(cache.stats()).toMatchObject({ cached: 0, stored: 0, hits: 0, misses: 0 })
  })

  it('forgets everything on clear, under live sequences too', () => {
    const cache = new PagedKvCache({ numBlocks: 8, pageSize: 2 })
    finished(cache, range(0, 4))
    const live = cache.allocate({ tokens: range(0, 4) })
    live.commit()
    cache.clear()
    expect(cache.stats()).toMatchObject({ used: 2, cached: 0, stored: 0 })
    live.appendTokens([4, 5])
    live.commit()
    expect(cache.match(range(0, 9))).toBe(0)
    expect(cache.violations()).toEqual([])
  })
})

describe('eviction', () => {
  const order: Record<EvictionPolicyName, string> = { lru: 'cab', lfu: 'bca', fifo: 'abc', priority: 'acb' }
  for (const policy of ['lru', 'lfu', 'fifo', 'priority'] as const) {
    it(`by ${policy} gives up ${[...order[policy]].join(', then ')}`, () => {
      const cache = new PagedKvCache({ numBlocks: 6, pageSize: 2, policy })
      const prompts = { a: [1, 1, 0], b: [2, 2, 0], c: [3, 3, 0] }
      finished(cache, prompts.a, { priority: 1 })
      finished(cache, prompts.b, { priority: 3 })
      finished(cache, prompts.c, { priority: 2 })
      for (const name of [...(policy === 'lfu' ? 'cca' : ''), ...'caab'] as ('a' | 'b' | 'c')[])
        cache.allocate({ tokens: prompts[name] }).free()
      const gone: string[] = []
      const hold = range(0, 3).map(() => cache.pool.allocate())
      for (let i = 0; i < 3; i++) {
        hold.push(cache.pool.allocate())
        for (const name of ['a', 'b', 'c'] as const)
          if (!gone.includes(name) && cache.match(prompts[name]) === 0) gone.push(name)
      }
      expect(gone.join('')).toBe(order[policy])
    })
  }

  it('by lru keeps its order when eviction turns parents into leaves', () => {
    const cache = new PagedKvCache({ numBlocks: 6, pageSize: 1 })
    const older = finished(cache, [1, 2, 3])
    const newer = finished(cache, [7, 8, 9])
    const taken = range(0, 6).map(() => cache.pool.allocate())
    expect(taken).toEqual([...older.reverse(), ...newer.reverse()])
  })

  it('takes a policy of your own', () => {
    const taken: number[] = []
    const cache = new PagedKvCache({
      numBlocks: 2,
      pageSize: 1,
      policy: () => {
        const held = new Set<number>()
        return {
          get size() {
            return held.size
          },
          insert: (block) => held.add(block),
          remove: (block) => held.delete(block),
          evict: () => {
            const block = Math.max(...held)
            held.delete(block)
            taken.push(block)
            return block
          },
        }
      },
    })
    finished(cache, [5])
    finished(cache, [6])
    cache.pool.allocate()
    expect(taken).toEqual([1])
  })

  it('refuses a policy it does not know', () => {
    const policy = 'mru' as EvictionPolicyName
    expect(() => new PagedKvCache({ numBlocks: 1, pageSize: 1, policy })).toThrow(InvalidArgumentError)
  })
})

describe('a failed call', () => {
  it('leaves the cache as it was', () => {
    const cache = new PagedKvCache({ numBlocks: 4, pageSize: 2 })
    finished(cache, range(0, 4))
    const live = cache.allocate({ tokens: range(0, 3) })
    const before = cache.save()
    const request = { tokens: [0, 1, ...range(50, 60)] }
    expect(cache.canAllocate(request)).toBe(false)
    expect(() => cache.allocate(request)).toThrow(OutOfPagesError)
    expect(() => cache.allocate({ tokens: [1, -1] })).toThrow(InvalidArgumentError)
    expect(() => cache.allocate({ tokens: [1], priority: Number.NaN })).toThrow(InvalidArgumentError)
    expect(() => live.appendTokens(range(0, 9))).toThrow(OutOfPagesError)
    expect(() => live.appendTokens([1.5])).toThrow(InvalidArgumentError)
    expect(() => live.appendToken(2 ** 31)).toThrow(InvalidArgumentError)
    expect(() => live.commit(4)).toThrow(InvalidArgumentError)
    expect(() => live.truncate(4)).toThrow(InvalidArgumentError)
    expect(() => live.token(3)).toThrow(InvalidArgumentError)
    expect(cache.save()).toEqual(before)
  })
})
