import { InvalidArgumentError, OutOfPagesError } from '@flashmla/spec'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { CachedSequence } from './cached-sequence'
import type { EvictionPolicyName } from './eviction/policy'
import type { PagedKvCacheOptions } from './paged-kv-cache'
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

describe('random programs', () => {
  const step = fc.record({
    op: fc.constantFrom('create', 'append', 'append', 'push', 'commit', 'fork', 'truncate', 'free', 'evict', 'clear'),
    who: fc.nat(9),
    amount: fc.nat(12),
    token: fc.nat(2),
  })
  const options = fc.record({
    numBlocks: fc.integer({ min: 4, max: 16 }),
    pageSize: fc.integer({ min: 1, max: 5 }),
    policy: fc.constantFrom<EvictionPolicyName>('lru', 'lfu', 'fifo', 'priority'),
    prefixCache: fc.constantFrom(true, true, true, false),
    colliding: fc.boolean(),
  })

  it('end with no leaked block, tokens intact and a clean invariant check', () => {
    fc.assert(
      fc.property(options, fc.array(step, { maxLength: 50 }), ({ colliding, numBlocks, ...settings }, program) => {
        const extra: Partial<PagedKvCacheOptions> = colliding ? { hash: () => 1 } : {}
        const cache = new PagedKvCache({ numBlocks, ...settings, ...extra })
        const model = new Model(cache)
        for (const { op, who, amount, token } of program) model.run(op, who, amount, token)
        model.finish()
      }),
      { numRuns: 1000 },
    )
  })

  it('go on the same after save and load', () => {
    fc.assert(
      fc.property(
        options,
        fc.array(step, { maxLength: 40 }),
        fc.nat(40),
        ({ colliding, numBlocks, ...settings }, program, cut) => {
          const extra: Partial<PagedKvCacheOptions> = colliding ? { hash: () => 1 } : {}
          const cache = new PagedKvCache({ numBlocks, ...settings, ...extra })
          const model = new Model(cache)
          for (const s of program.slice(0, cut)) model.run(s.op, s.who, s.amount, s.token)
          const bytes = cache.save()
          const copy = PagedKvCache.load(bytes, { ...settings, ...extra })
          expect(copy.save()).toEqual(bytes)
          expect(copy.stats()).toEqual(cache.stats())
          const twin = model.twin(copy)
          for (const s of program.slice(cut)) {
            model.run(s.op, s.who, s.amount, s.token)
            twin.run(s.op, s.who, s.amount, s.token)
          }
          expect(copy.save()).toEqual(cache.save())
        },
      ),
      { numRuns: 1000 },
    )
  })
})

/** Runs a program on a cache beside the plain truth: the tokens of each live sequence, and what each block holds. */
class Model {
  live: { sequence: CachedSequence; tokens: number[] }[] = []

  constructor(
    readonly cache: PagedKvCache,
    /** Content of cache memory by slot, written as an engine would: the token and a digest of all before it. */
    readonly memory = new Map<number, string>(),
  ) {}

  twin(cache: PagedKvCache): Model {
    const twin = new Model(cache, new Map(this.memory))
    twin.live = this.live.map(({ sequence, tokens }) => {
      const own = cache.sequences.find(({ id }) => id === sequence.id)!
      return { sequence: own, tokens: [...tokens] }
    })
    return twin
  }

  run(op: string, who: number, amount: number, token: number): void {
    const { cache, live } = this
    const target = live[who % Math.max(1, live.length)]
    const more = Array.from({ length: amount }, (_, i) => (token + (i >> 2)) % 3)
    if (op === 'create') this.#create(more, `salt ${who % 2}`, token)
    else if (op === 'clear') {
      if (amount === 0) cache.clear()
    } else if (op === 'evict') {
      const taken = Array.from({ length: Math.min(2 * amount, cache.pool.numFree) }, () => cache.pool.allocate())
      for (const block of taken) {
        for (let i = 0; i < cache.pageSize; i++) this.memory.delete(block * cache.pageSize + i)
        cache.pool.release(block)
      }
    } else if (!target) return
    else if (op === 'append') this.#append(target, more)
    else if (op === 'push') this.#append(target, [token])
    else if (op === 'commit') target.sequence.commit(Math.max(0, target.tokens.length - amount))
    else if (op === 'fork') live.push({ sequence: target.sequence.fork(), tokens: [...target.tokens] })
    else if (op === 'truncate') {
      const length = Math.max(0, target.tokens.length - amount)
      target.sequence.truncate(length)
      target.tokens.length = length
    } else {
      target.sequence.free()
      live.splice(live.indexOf(target), 1)
    }
    this.#check()
  }

  finish(): void {
    for (const { sequence } of this.live.splice(0)) sequence.free()
    this.#check()
    expect(this.cache.stats()).toMatchObject({ used: 0, free: this.cache.pool.numBlocks, sequences: 0 })
    this.cache.clear()
    expect(this.cache.pool.numUnused).toBe(this.cache.pool.numBlocks)
  }

  #create(tokens: number[], salt: string, priority: number): void {
    const request = { tokens, salt, priority }
    if (!this.cache.canAllocate(request)) {
      expect(() => this.cache.allocate(request)).toThrow(OutOfPagesError)
      return
    }
    const found = this.cache.match(tokens, salt)
    const sequence = this.cache.allocate(request)
    expect(sequence.cachedTokens).toBe(found)
    this.#write(sequence, found, tokens)
    this.live.push({ sequence, tokens: [...tokens] })
  }

  #append(target: { sequence: CachedSequence; tokens: number[] }, more: number[]): void {
    const { sequence, tokens } = target
    if (!sequence.canAppend(more.length)) {
      expect(() => sequence.appendTokens(more)).toThrow(OutOfPagesError)
      return
    }
    const copy = more.length === 1 ? sequence.appendToken(more[0]!) : sequence.appendTokens(more)
    const { pageSize } = this.cache
    if (copy)
      for (let i = 0; i < copy.slots; i++)
        this.memory.set(copy.to * pageSize + i, this.memory.get(copy.from * pageSize + i)!)
    const first = tokens.length
    tokens.push(...more)
    this.#write(sequence, first, tokens)
  }

  #write(sequence: CachedSequence, first: number, tokens: number[]): void {
    for (let i = first; i < tokens.length; i++) this.memory.set(sequence.slot(i), latent(sequence, tokens, i))
  }

  /** Every live token's latent stands where the sequence says, whoever wrote it. */
  #check(): void {
    expect(this.cache.violations()).toEqual([])
    for (const { sequence, tokens } of this.live) {
      expect(sequence.length).toBe(tokens.length)
      for (let i = 0; i < tokens.length; i++) {
        expect(sequence.token(i)).toBe(tokens[i])
        expect(this.memory.get(sequence.slot(i))).toBe(latent(sequence, tokens, i))
      }
    }
  }
}

const latent = (sequence: CachedSequence, tokens: number[], i: number) =>
  `${sequence.salt}:${tokens.slice(0, i + 1).join()}`
