import { InvalidArgumentError, OutOfPagesError } from '@flashmla/spec'
import { BlockPool } from './block-pool'
import type { SequenceOwner } from './cached-sequence'
import { CachedSequence, checkTokens } from './cached-sequence'
import { blockColumns } from './columns'
import type { CacheEvent, CacheListener, LostEvents } from './events'
import { EventHub } from './events'
import type { EvictionPolicyFactory, EvictionPolicyName } from './eviction/policy'
import { evictionPolicy } from './eviction/policy'
import type { BlockHash } from './hash'
import { hashBlock } from './hash'
import { findViolations } from './invariants'
import { PrefixCache } from './prefix-cache'
import { Salts } from './salts'
import type { CacheState } from './snapshot'
import { decodeState, encodeState } from './snapshot'

export interface PagedKvCacheSettings {
  /** False: nothing is stored or found; sequences behave the same otherwise. */
  readonly prefixCache?: boolean
  /** Which idle block goes first when the pool runs out (default `lru`). */
  readonly policy?: EvictionPolicyName | EvictionPolicyFactory
  /** Content hash; the default serves, and a colliding one costs only time. */
  readonly hash?: BlockHash
}

export interface PagedKvCacheOptions extends PagedKvCacheSettings {
  /** Blocks of a pool of the cache's own, or a pool to share with sequences that it does not know. */
  readonly numBlocks?: number
  readonly pool?: BlockPool
  /** Tokens a block, ≥ 1. */
  readonly pageSize: number
}

export interface SequenceRequest {
  /** The prompt's token ids. */
  readonly tokens: ArrayLike<number>
  /** Who may share: content is found only under the salt it was stored under. */
  readonly salt?: string
  /** Orders eviction under the `priority` policy (default 0): higher stays longer. */
  readonly priority?: number
}

export interface CacheStats {
  readonly blocks: number
  /** Blocks that a live sequence references. */
  readonly used: number
  /** Blocks that can be allocated, the cached ones included. */
  readonly free: number
  /** Idle blocks whose content can still be found. */
  readonly cached: number
  /** Blocks whose content can be found, in use or idle. */
  readonly stored: number
  readonly sequences: number
  /** Full prompt blocks that were found, and not, when sequences were made. */
  readonly hits: number
  readonly misses: number
  readonly evictions: number
}

/** A pool of blocks, the sequences that use it, and a prefix cache over both. A call that throws has changed nothing. */
export class PagedKvCache {
  readonly pool: BlockPool
  readonly pageSize: number
  readonly #prefix: PrefixCache
  readonly #events = new EventHub()
  readonly #live = new Map<number, CachedSequence>()
  readonly #owner: SequenceOwner
  #caching: boolean
  readonly #ownPool: boolean
  #nextId = 0
  #hits = 0
  #misses = 0

  constructor(options: PagedKvCacheOptions) {
    const { pageSize } = options
    if (!Number.isInteger(pageSize) || pageSize < 1) {
      throw new InvalidArgumentError(`A page of ${pageSize} tokens can't be made.`, 'Give a whole page size ≥ 1.')
    }
    if ((options.pool === undefined) === (options.numBlocks === undefined)) {
      throw new InvalidArgumentError('A cache needs numBlocks or a pool, not both.', 'Give one of the two.')
    }
    const policy = evictionPolicy(options.policy ?? 'lru')
    this.#ownPool = options.pool === undefined
    this.pool = options.pool ?? new BlockPool(options.numBlocks!)
    this.pageSize = pageSize
    this.#caching = options.prefixCache ?? true
    this.#prefix = new PrefixCache({
      pool: this.pool,
      pageSize,
      columns: blockColumns(this.pool.numBlocks, pageSize),
      salts: new Salts(),
      policy,
      hash: options.hash ?? hashBlock,
      events: this.#events,
    })
    const caching = () => this.#caching
    this.#owner = {
      pool: this.pool,
      prefix: this.#prefix,
      get caching() {
        return caching()
      },
      nextId: () => this.#nextId++,
      enter: (sequence) => this.#live.set(sequence.id, sequence),
      leave: (sequence) => this.#live.delete(sequence.id),
    }
  }

  /** Live sequences in order of creation. */
  get sequences(): CachedSequence[] {
    return [...this.#live.values()]
  }

  /** Tokens of `tokens` that a sequence made now would find: whole blocks, and never the last token. Changes nothing. */
  match(tokens: ArrayLike<number>, salt = ''): number {
    return this.#match(tokens, salt) * this.pageSize
  }

  /**
   * A sequence that holds the blocks found for the start of `tokens`: its length is `cachedTokens`, and the caller appends
   * the rest, in chunks as it likes. The last token is never taken from the cache, since its logits are wanted.
   */
  createSequence(request: SequenceRequest): CachedSequence {
    return this.#create(request, this.#match(request.tokens, request.salt ?? ''))
  }

  /** True when `allocate` with the same request would succeed. */
  canAllocate(request: SequenceRequest): boolean {
    const { needed, free } = this.#room(request.tokens, this.#match(request.tokens, request.salt ?? ''))
    return needed <= free
  }

  /**
   * Like `createSequence`, and makes room for all of `tokens`.
   * @throws OutOfPagesError when the pool is too small
   */
  allocate(request: SequenceRequest): CachedSequence {
    checkTokens(request.tokens)
    const matched = this.#match(request.tokens, request.salt ?? '')
    const { needed, free } = this.#room(request.tokens, matched)
    if (needed > free) throw new OutOfPagesError(needed, free)
    const sequence = this.#create(request, matched)
    sequence.appendTokens(Array.prototype.slice.call(request.tokens, sequence.cachedTokens))
    return sequence
  }

  /** Forgets all stored content. Live sequences go on, but what they hold is not found any more. */
  clear(): void {
    this.#prefix.clear()
    for (const sequence of this.#live.values()) sequence.forget()
  }

  /** Forgets all stored content and gives the pool free for another cache. Make no sequence of this one any more. */
  detach(): void {
    this.#caching = false
    this.#prefix.detach()
  }

  stats(): CacheStats {
    return {
      blocks: this.pool.numBlocks,
      used: this.pool.numUsed,
      free: this.pool.numFree,
      cached: this.#prefix.numIdle,
      stored: this.#prefix.numStored,
      sequences: this.#live.size,
      hits: this.#hits,
      misses: this.#misses,
      evictions: this.#prefix.evictions,
    }
  }

  /** What a block is to the cache: `used` by a sequence, `cached` for its content only, or `unused`. */
  blockState(block: number): 'used' | 'cached' | 'unused' {
    if (this.pool.references(block) > 0) return 'used'
    return this.#prefix.holds(block) ? 'cached' : 'unused'
  }

  /** Calls `listener` after each change of stored content; the returned function takes it away. See {@link EventHub}. */
  listen(listener: CacheListener): () => void {
    return this.#events.listen(listener)
  }

  /** The same events as an async iterable; `limit` bounds those not yet read. */
  events(options?: { signal?: AbortSignal; limit?: number }): AsyncIterableIterator<CacheEvent | LostEvents> {
    return this.#events.iterate(options)
  }

  /** What contradicts itself in the cache's state, in words: empty when all is well. Walks every block. */
  violations(): string[] {
    return findViolations(this.pool, this.#prefix, this.sequences, this.#ownPool)
  }

  /** The whole state, sequences included, as bytes. What blocks hold on a device is the caller's to save. */
  save(): Uint8Array {
    return encodeState({
      pageSize: this.pageSize,
      tick: this.#prefix.tick,
      evictions: this.#prefix.evictions,
      hits: this.#hits,
      misses: this.#misses,
      nextId: this.#nextId,
      salts: this.#prefix.salts.state(),
      sequences: this.sequences.map((sequence) => sequence.state()),
      pool: this.pool.state(),
      columns: this.#prefix.columns,
    })
  }

  /**
   * The cache that `save` described; its sequences are in `sequences`, under their old ids.
   * @throws InvalidArgumentError when the bytes are not a whole saved state, or contradict themselves
   */
  static load(bytes: Uint8Array, settings: PagedKvCacheSettings = {}): PagedKvCache {
    const state = decodeState(bytes)
    const cache = new PagedKvCache({ ...settings, pool: BlockPool.from(state.pool), pageSize: state.pageSize })
    cache.#restore(state)
    const [violation] = findViolations(cache.pool, cache.#prefix, cache.sequences, true)
    if (violation) {
      throw new InvalidArgumentError(
        `The saved cache contradicts itself: ${violation}`,
        'Save from a cache whose pool it alone uses, and keep the bytes whole.',
      )
    }
    return cache
  }

  #restore(state: CacheState): void {
    const { columns, salts } = this.#prefix
    for (const name of Object.keys(columns) as (keyof typeof columns)[]) columns[name].set(state.columns[name])
    salts.restore(state.salts)
    for (const saved of state.sequences) {
      salts.retain(saved.salt)
      const sequence = new CachedSequence(this.#owner, saved.id, saved.salt, saved.priority)
      sequence.restore(saved)
      this.#live.set(saved.id, sequence)
    }
    this.#prefix.restore(state.tick, state.evictions)
    this.#nextId = state.nextId
    this.#hits = state.hits
    this.#misses = state.misses
  }

  /** Leading blocks that are stored; the prefix cache's `found` then holds them. */
  #match(tokens: ArrayLike<number>, salt: string): number {
    const id = this.#prefix.salts.find(salt)
    if (id === undefined || !this.#caching) return 0
    return this.#prefix.match(id, tokens, this.#matchable(tokens))
  }

  #matchable(tokens: ArrayLike<number>): number {
    return Math.max(0, Math.floor((tokens.length - 1) / this.pageSize))
  }

  #room(tokens: ArrayLike<number>, matched: number): { needed: number; free: number } {
    let idle = 0
    for (let i = 0; i < matched; i++) if (this.pool.references(this.#prefix.found[i]!) === 0) idle++
    return { needed: Math.ceil(tokens.length / this.pageSize) - matched, free: this.pool.numFree - idle }
  }

  #create(request: SequenceRequest, matched: number): CachedSequence {
    const priority = request.priority ?? 0
    if (!Number.isFinite(priority)) {
      throw new InvalidArgumentError(`${priority} is not a priority.`, 'Give a finite number; higher stays longer.')
    }
    const salt = this.#prefix.salts.acquire(request.salt ?? '')
    const sequence = new CachedSequence(this.#owner, this.#nextId++, salt, priority)
    sequence.startFrom(matched)
    this.#live.set(sequence.id, sequence)
    this.#hits += matched
    if (this.#caching) this.#misses += this.#matchable(request.tokens) - matched
    return sequence
  }
}
