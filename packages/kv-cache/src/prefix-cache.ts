import { BlockIndex } from './block-index'
import type { BlockPool, Retention } from './block-pool'
import type { BlockColumns } from './columns'
import type { EventSink } from './events'
import type { EvictionPolicy, EvictionPolicyFactory } from './eviction/policy'
import type { BlockHash } from './hash'
import type { Salts } from './salts'

export interface PrefixCacheParts {
  readonly pool: BlockPool
  readonly pageSize: number
  readonly columns: BlockColumns
  readonly salts: Salts
  readonly policy: EvictionPolicyFactory
  readonly hash: BlockHash
  readonly events: EventSink
}

/**
 * Full blocks found again by content: a tree whose edges are blocks of tokens and whose roots are salts. A lookup hashes,
 * then compares the tokens and the parent block themselves, so a hash collision can't give a false hit.
 *
 * Two facts hold it together. Whoever references a stored block references all stored blocks before it, so a block in use
 * never hangs on an idle one. And only leaves are evicted, so a stored block's parent is stored.
 */
export class PrefixCache implements Retention {
  readonly columns: BlockColumns
  readonly pageSize: number
  readonly salts: Salts
  readonly #pool: BlockPool
  readonly #index: BlockIndex
  readonly #hash: BlockHash
  readonly #events: EventSink
  readonly #makePolicy: EvictionPolicyFactory
  #policy: EvictionPolicy
  #found = new Int32Array(16)
  #tick = 0
  #numIdle = 0
  #numStored = 0
  #evictions = 0

  constructor(parts: PrefixCacheParts) {
    this.columns = parts.columns
    this.pageSize = parts.pageSize
    this.salts = parts.salts
    this.#pool = parts.pool
    this.#hash = parts.hash
    this.#events = parts.events
    this.#makePolicy = parts.policy
    this.#policy = parts.policy(parts.columns)
    this.#index = new BlockIndex(parts.columns.hash)
    parts.pool.attach(this)
  }

  /** Forgets everything and leaves the pool to another. */
  detach(): void {
    this.clear()
    this.#pool.detach(this)
  }

  get numIdle(): number {
    return this.#numIdle
  }

  get numStored(): number {
    return this.#numStored
  }

  get evictions(): number {
    return this.#evictions
  }

  /** Blocks that the eviction policy holds: the idle leaves. */
  get numEvictable(): number {
    return this.#policy.size
  }

  /** The clock of storedAt and idleSince. */
  get tick(): number {
    return this.#tick
  }

  holds(block: number): boolean {
    return this.columns.stored[block] === 1
  }

  keep(block: number): boolean {
    const { stored, idleSince, children } = this.columns
    if (stored[block] === 0) return false
    idleSince[block] = ++this.#tick
    this.#numIdle++
    if (children[block] === 0) this.#policy.insert(block)
    return true
  }

  revive(block: number): void {
    this.#numIdle--
    if (this.columns.children[block] === 0) this.#policy.remove(block)
  }

  evict(): number {
    const block = this.#policy.evict()
    const { stored, parent, children, hash } = this.columns
    this.#index.remove(block)
    stored[block] = 0
    this.#numStored--
    this.#numIdle--
    this.#evictions++
    const before = parent[block]!
    if (before < 0) this.salts.release(-1 - before)
    else if (--children[before]! === 0 && this.#pool.references(before) === 0) this.#policy.insert(before)
    if (this.#events.watched) this.#events.emit({ type: 'removed', block, hash: hash[block]! })
    return block
  }

  /** How many leading full blocks of `tokens` are stored, at most `limit`; `found` then holds them. */
  match(salt: number, tokens: ArrayLike<number>, limit: number): number {
    if (limit > this.#found.length) this.#found = new Int32Array(Math.max(limit, 2 * this.#found.length))
    let parent = -1 - salt
    let hash = this.salts.hash(salt)
    for (let i = 0; i < limit; i++) {
      const start = i * this.pageSize
      hash = this.#hash(hash, tokens, start, start + this.pageSize)
      parent = this.#find(parent, hash, tokens, start)
      if (parent < 0) return i
      this.#found[i] = parent
    }
    return limit
  }

  /** Blocks of the last match; overwritten by the next one. */
  get found(): Int32Array {
    return this.#found
  }

  /** Takes a reference to a block that was found. */
  take(block: number, priority: number): void {
    this.#pool.retain(block)
    this.columns.hits[block]!++
    this.raise(block, priority)
  }

  /** Raises the priority of a block in use. */
  raise(block: number, priority: number): void {
    if (priority > this.columns.priority[block]!) this.columns.priority[block] = priority
  }

  /**
   * Stores the full block `block`, whose tokens stand in its row of the columns, under `parent` (a stored block, or −1 − salt).
   * Returns the block that holds this content: `block`, or one stored before.
   */
  store(block: number, parent: number, priority: number): number {
    const { columns, pageSize } = this
    const start = block * pageSize
    const parentHash = parent < 0 ? this.salts.hash(-1 - parent) : columns.hash[parent]!
    const hash = this.#hash(parentHash, columns.tokens, start, start + pageSize)
    const same = this.#find(parent, hash, columns.tokens, start)
    if (same >= 0) return same
    columns.stored[block] = 1
    columns.parent[block] = parent
    columns.children[block] = 0
    columns.hash[block] = hash
    columns.storedAt[block] = ++this.#tick
    columns.hits[block] = 0
    columns.priority[block] = priority
    this.#index.add(block)
    this.#numStored++
    if (parent < 0) this.salts.retain(-1 - parent)
    else columns.children[parent]!++
    if (this.#events.watched) {
      const tokens = columns.tokens.slice(start, start + pageSize)
      this.#events.emit({ type: 'stored', block, hash, parentHash: parent < 0 ? undefined : parentHash, tokens })
    }
    return block
  }

  /** Forgets all content. Blocks in use stay in use; idle ones become unused. */
  clear(): void {
    const { stored, parent } = this.columns
    for (let block = 0; block < stored.length; block++) {
      if (stored[block] === 0) continue
      stored[block] = 0
      if (parent[block]! < 0) this.salts.release(-1 - parent[block]!)
      if (this.#pool.references(block) === 0) this.#pool.reclaim(block)
    }
    this.#index.clear()
    this.#policy = this.#makePolicy(this.columns)
    this.#numIdle = 0
    this.#numStored = 0
    this.#events.emit({ type: 'cleared' })
  }

  /** Takes up columns that were loaded: rebuilds the index, and tells the policy of the idle leaves in idle order. */
  restore(tick: number, evictions: number): void {
    const { stored, children, idleSince, parent } = this.columns
    this.#tick = tick
    this.#evictions = evictions
    const leaves: number[] = []
    for (let block = 0; block < stored.length; block++) {
      if (stored[block] === 0) continue
      this.#index.add(block)
      this.#numStored++
      if (parent[block]! < 0) this.salts.retain(-1 - parent[block]!)
      if (this.#pool.references(block) > 0) continue
      this.#numIdle++
      if (children[block] === 0) leaves.push(block)
    }
    leaves.sort((a, b) => idleSince[a]! - idleSince[b]!)
    for (const block of leaves) this.#policy.insert(block)
  }

  /** True when the index has the stored block exactly once. */
  indexes(block: number): boolean {
    let times = 0
    for (let at = this.#index.first(this.columns.hash[block]!); at >= 0; at = this.#index.next(at))
      if (at === block) times++
    return times === 1
  }

  /** The stored block of this content, or −1. */
  #find(parent: number, hash: number, tokens: ArrayLike<number>, start: number): number {
    const { columns, pageSize } = this
    for (let block = this.#index.first(hash); block >= 0; block = this.#index.next(block)) {
      if (columns.parent[block] !== parent || columns.hash[block] !== hash) continue
      const row = block * pageSize
      let i = 0
      while (i < pageSize && columns.tokens[row + i] === tokens[start + i]) i++
      if (i === pageSize) return block
    }
    return -1
  }
}
