import { InvalidArgumentError } from '@flashmla/spec'
import type { BlockPool } from './block-pool'
import type { PrefixCache } from './prefix-cache'
import type { BlockCopy } from './sequence'
import { PagedSequence } from './sequence'

/** What a sequence needs of the cache that it belongs to. */
export interface SequenceOwner {
  readonly pool: BlockPool
  readonly prefix: PrefixCache
  /** False when nothing is to be stored. */
  readonly caching: boolean
  nextId(): number
  enter(sequence: CachedSequence): void
  leave(sequence: CachedSequence): void
}

export interface SequenceState {
  readonly id: number
  readonly salt: number
  readonly priority: number
  readonly cachedTokens: number
  readonly length: number
  readonly committed: number
  readonly known: number
  readonly stored: number
  readonly blocks: readonly number[]
  /** Missing in states that were saved before it was known. */
  readonly cleared?: boolean
}

/**
 * A paged sequence whose token ids are known, so that its full blocks can be found by others once they are committed.
 * Made by `PagedKvCache.createSequence`, `allocate` and `fork`.
 */
export class CachedSequence extends PagedSequence {
  readonly id: number
  readonly salt: string
  /** Orders eviction under the `priority` policy: higher stays longer. */
  readonly priority: number
  readonly #owner: SequenceOwner
  readonly #salt: number
  #cachedTokens = 0
  #committed = 0
  /** Leading tokens whose ids are known. */
  #known = 0
  /** Leading blocks that were offered to the prefix cache. */
  #stored = 0
  /** The cache was cleared when this sequence held tokens: what it holds is not to be found. */
  #cleared = false

  /** @internal The salt's user count is the caller's to raise. */
  constructor(owner: SequenceOwner, id: number, salt: number, priority: number) {
    super(owner.pool, owner.prefix.pageSize)
    this.id = id
    this.salt = owner.prefix.salts.text(salt)
    this.priority = priority
    this.#owner = owner
    this.#salt = salt
  }

  /** Tokens whose latents were in the cache when the sequence was made: prefill starts after them. */
  get cachedTokens(): number {
    return this.#cachedTokens
  }

  /** Tokens whose latents are known to be written. */
  get committed(): number {
    return this.#committed
  }

  /** Id of a token. @throws InvalidArgumentError when it is not held or was appended without an id */
  token(index: number): number {
    if (!Number.isInteger(index) || index < 0 || index >= this.#known) {
      throw new InvalidArgumentError(
        `Token ${index} is not among the ${this.#known} known ones.`,
        'Append with token ids to have them known.',
      )
    }
    return this.#owner.prefix.columns.tokens[this.slot(index)]!
  }

  /** Makes room for tokens of unknown ids. Blocks from there on can't be shared through the prefix cache. */
  override append(tokens: number): BlockCopy | undefined {
    const copy = super.append(tokens)
    if (copy) this.#copyTokens(copy)
    return copy
  }

  /**
   * Makes room for one token. Allocates no memory.
   * @throws OutOfPagesError when the pool is too small
   */
  override appendToken(token: number): BlockCopy | undefined {
    checkToken(token)
    const copy = this.append(1)
    const last = this.length - 1
    if (this.#known === last) {
      this.#owner.prefix.columns.tokens[this.slot(last)] = token
      this.#known++
    }
    return copy
  }

  /**
   * Makes room for tokens; their latents are to be written before they are committed.
   * @throws OutOfPagesError when the pool is too small
   */
  override appendTokens(tokens: ArrayLike<number>): BlockCopy | undefined {
    checkTokens(tokens)
    const first = this.length
    const copy = this.append(tokens.length)
    if (this.#known === first) {
      const rows = this.#owner.prefix.columns.tokens
      for (let i = 0; i < tokens.length; i++) rows[this.slot(first + i)] = tokens[i]!
      this.#known += tokens.length
    }
    return copy
  }

  /**
   * Says that the latents of the first `length` tokens are written: their full blocks can be found from now on. A block
   * whose content is stored already is exchanged for the stored one, and `revision` grows; one that a fork shares waits,
   * and what follows it with it, until a commit after the fork is gone.
   * Tokens that were only speculated are truncated first, or left uncommitted.
   */
  commit(length = this.length): void {
    this.assertAlive()
    if (!Number.isInteger(length) || length < 0 || length > this.length) {
      throw new InvalidArgumentError(
        `${length} tokens of a sequence of ${this.length} can't be committed.`,
        'Give a whole number from 0 to its length.',
      )
    }
    if (length > this.#committed) this.#committed = length
    const full = Math.floor(Math.min(this.#committed, this.#known) / this.pageSize)
    if (full > this.#stored && this.#owner.caching && !this.#cleared) this.#store(full)
  }

  override fork(): CachedSequence {
    this.assertAlive()
    const owner = this.#owner
    const child = new CachedSequence(owner, owner.nextId(), this.#salt, this.priority)
    child.share(this)
    child.#cachedTokens = this.#cachedTokens
    child.#committed = this.#committed
    child.#known = this.#known
    child.#stored = this.#stored
    child.#cleared = this.#cleared
    owner.prefix.salts.retain(this.#salt)
    owner.enter(child)
    return child
  }

  override truncate(length: number): void {
    super.truncate(length)
    this.#committed = Math.min(this.#committed, length)
    this.#known = Math.min(this.#known, length)
    this.#stored = Math.min(this.#stored, Math.floor(length / this.pageSize))
    this.#cachedTokens = Math.min(this.#cachedTokens, length)
  }

  /** Frees every page; stored ones can be found until they are evicted. Safe to call twice. */
  override free(): void {
    if (this.isFreed) return
    super.free()
    this.#owner.prefix.salts.release(this.#salt)
    this.#owner.leave(this)
  }

  /** @internal Starts from the first `blocks` blocks of the cache's last match. */
  startFrom(blocks: number): void {
    const { found } = this.#owner.prefix
    for (let i = 0; i < blocks; i++) this.#owner.prefix.take(found[i]!, this.priority)
    this.adopt(found, blocks, blocks * this.pageSize)
    this.#stored = blocks
    this.#cachedTokens = this.#committed = this.#known = this.length
  }

  /** @internal The cache forgets all content, this sequence's too. */
  forget(): void {
    if (this.length > 0) this.#cleared = true
  }

  /** @internal */
  state(): SequenceState {
    return {
      id: this.id,
      salt: this.#salt,
      priority: this.priority,
      cachedTokens: this.#cachedTokens,
      length: this.length,
      committed: this.#committed,
      known: this.#known,
      stored: this.#stored,
      blocks: [...this.blocks],
      cleared: this.#cleared,
    }
  }

  /** @internal Takes up a saved state; the pool's references already count its blocks. */
  restore(state: SequenceState): void {
    this.adopt(Int32Array.from(state.blocks), state.blocks.length, state.length)
    this.#cachedTokens = state.cachedTokens
    this.#committed = state.committed
    this.#known = state.known
    this.#stored = state.stored
    this.#cleared = state.cleared ?? false
  }

  #store(full: number): void {
    const { prefix } = this.#owner
    for (; this.#stored < full; this.#stored++) {
      const i = this.#stored
      const parent = i === 0 ? -1 - this.#salt : this.ids[i - 1]!
      // The cache was cleared under this sequence: its chain has no root to hang on.
      if (parent >= 0 && !prefix.holds(parent)) return
      const block = this.ids[i]!
      if (prefix.holds(block)) continue
      const stored = prefix.store(block, parent, this.priority)
      if (stored === block) continue
      // Forks hold this block before the later ones that they share: a later one must not be stored after another.
      if (this.pool.references(block) > 1) return
      this.replace(i, stored)
      prefix.raise(stored, this.priority)
    }
  }

  #copyTokens({ from, to, slots }: BlockCopy): void {
    const start = from * this.pageSize
    this.#owner.prefix.columns.tokens.copyWithin(to * this.pageSize, start, start + slots)
  }
}

/** @throws InvalidArgumentError unless all are token ids */
export function checkTokens(tokens: ArrayLike<number>): void {
  for (let i = 0; i < tokens.length; i++) checkToken(tokens[i]!)
}

function checkToken(token: number): void {
  if ((token | 0) !== token || token < 0) {
    throw new InvalidArgumentError(`${token} is not a token id.`, 'Give whole numbers from 0 to 2147483647.')
  }
}
