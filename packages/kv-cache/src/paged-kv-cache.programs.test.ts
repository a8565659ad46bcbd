import { OutOfPagesError } from '@flashmla/spec'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { CachedSequence } from './cached-sequence'
import type { EvictionPolicyName } from './eviction/policy'
import type { PagedKvCacheOptions } from './paged-kv-cache'
import { PagedKvCache } from './paged-kv-cache'

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
      fc.property(
        options,
        fc.array(step, { maxLength: 50, size: 'max' }),
        ({ colliding, numBlocks, ...settings }, program) => {
          const extra: Partial<PagedKvCacheOptions> = colliding ? { hash: () => 1 } : {}
          const cache = new PagedKvCache({ numBlocks, ...settings, ...extra })
          const model = new Model(cache)
          for (const { op, who, amount, token } of program) model.run(op, who, amount, token)
          model.finish()
        },
      ),
      { numRuns: 400 },
    )
  })

  it('go on the same after save and load', () => {
    fc.assert(
      fc.property(
        options,
        fc.array(step, { maxLength: 40, size: 'max' }),
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
      { numRuns: 400 },
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
