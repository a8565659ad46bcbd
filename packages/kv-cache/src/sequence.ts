import { InvalidArgumentError, OutOfPagesError } from '@flashmla/spec'
import type { BlockPool } from './block-pool'

/** A copy the caller must make in cache memory before it writes: slots [0, slots) of block `from` to block `to`. */
export interface BlockCopy {
  readonly from: number
  readonly to: number
  readonly slots: number
}

/** The pages of one sequence. A mutation that throws has changed nothing. */
export class PagedSequence {
  readonly pageSize: number
  protected readonly pool: BlockPool
  /** Block ids, in use up to `count`. */
  protected ids = new Int32Array(4)
  protected count = 0
  #view: Int32Array = this.ids.subarray(0, 0)
  #length = 0
  #revision = 0
  #freed = false

  constructor(pool: BlockPool, pageSize: number) {
    if (!Number.isInteger(pageSize) || pageSize < 1) {
      throw new InvalidArgumentError(
        `A page of ${pageSize} tokens can't be made.`,
        'Give a whole page size ≥ 1; 64 is the fast one.',
      )
    }
    this.pool = pool
    this.pageSize = pageSize
  }

  /** Tokens held. */
  get length(): number {
    return this.#length
  }

  get isFreed(): boolean {
    return this.#freed
  }

  /** Block ids in order: a view that the next mutation may outdate. Read it, or copy it. */
  get blocks(): Int32Array {
    if (this.#view.length !== this.count || this.#view.buffer !== this.ids.buffer)
      this.#view = this.ids.subarray(0, this.count)
    return this.#view
  }

  get numBlocks(): number {
    return this.count
  }

  /** Grows when a block id given out before was replaced or dropped; appending blocks leaves it as it is. */
  get revision(): number {
    return this.#revision
  }

  /** Pages that `append(tokens)` would take from the pool. */
  pagesNeeded(tokens: number): number {
    const pages = Math.ceil((this.#length + tokens) / this.pageSize) - this.count
    return pages + (tokens > 0 && this.#lastMustBeCopied() ? 1 : 0)
  }

  /** True when `append(tokens)` would succeed. */
  canAppend(tokens: number): boolean {
    return !this.#freed && this.pagesNeeded(tokens) <= this.pool.numFree
  }

  /**
   * Makes room for `tokens` more. A partial last block that others share, or may find in a prefix cache, is replaced by a
   * fresh one: make the returned copy first.
   * @throws OutOfPagesError when the pool is too small
   */
  append(tokens: number): BlockCopy | undefined {
    this.assertAlive()
    if (!Number.isInteger(tokens) || tokens < 0) {
      throw new InvalidArgumentError(`${tokens} tokens can't be appended.`, 'Give a whole number ≥ 0.')
    }
    const needed = this.pagesNeeded(tokens)
    if (needed > 0) {
      const free = this.pool.numFree
      if (needed > free) throw new OutOfPagesError(needed, free)
    }
    const copy = tokens > 0 && this.#lastMustBeCopied() ? this.#copyLast() : undefined
    const pages = Math.ceil((this.#length + tokens) / this.pageSize)
    if (pages > this.ids.length) this.#grow(pages)
    while (this.count < pages) this.ids[this.count++] = this.pool.allocate()
    this.#length += tokens
    return copy
  }

  /** Makes room for one token; a sequence of a prefix cache remembers its id. */
  appendToken(_token: number): BlockCopy | undefined {
    return this.append(1)
  }

  /** Makes room for tokens; a sequence of a prefix cache remembers their ids. */
  appendTokens(tokens: ArrayLike<number>): BlockCopy | undefined {
    return this.append(tokens.length)
  }

  /** A sequence that shares every page; the partial last one is copied on the first append of either. */
  fork(): PagedSequence {
    const child = new PagedSequence(this.pool, this.pageSize)
    child.share(this)
    return child
  }

  /** Forgets the tokens from `length` on, and frees their pages, the last one first. */
  truncate(length: number): void {
    this.assertAlive()
    if (!Number.isInteger(length) || length < 0 || length > this.#length) {
      throw new InvalidArgumentError(
        `A sequence of ${this.#length} tokens can't be truncated to ${length}.`,
        'Give a whole number from 0 to its length.',
      )
    }
    const pages = Math.ceil(length / this.pageSize)
    if (this.count > pages) this.#revision++
    while (this.count > pages) this.pool.release(this.ids[--this.count]!)
    this.#length = length
  }

  /** Frees every page. Safe to call twice. */
  free(): void {
    if (this.#freed) return
    this.truncate(0)
    this.#freed = true
  }

  /** Slot of a token in cache memory: block · pageSize + offset. */
  slot(token: number): number {
    return this.ids[Math.floor(token / this.pageSize)]! * this.pageSize + (token % this.pageSize)
  }

  /** Takes over the blocks of another sequence, with a reference of its own to each. Only for an empty sequence. */
  protected share(other: PagedSequence): void {
    other.assertAlive()
    this.adopt(other.ids, other.count, other.length)
    for (let i = 0; i < this.count; i++) this.pool.retain(this.ids[i]!)
  }

  /** Sets blocks that this sequence holds a reference to already. Only for an empty sequence. */
  protected adopt(blocks: Int32Array, count: number, length: number): void {
    this.ids = new Int32Array(Math.max(4, count))
    this.ids.set(blocks.subarray(0, count))
    this.count = count
    this.#length = length
  }

  /** Puts another block of the same content in the place of block `index`. */
  protected replace(index: number, block: number): void {
    this.pool.retain(block)
    this.pool.release(this.ids[index]!)
    this.ids[index] = block
    this.#revision++
  }

  protected assertAlive(): void {
    if (this.#freed) throw new InvalidArgumentError('The sequence was freed.', 'Make a new one.')
  }

  #lastMustBeCopied(): boolean {
    return this.#length % this.pageSize !== 0 && !this.pool.isWritable(this.ids[this.count - 1]!)
  }

  #copyLast(): BlockCopy {
    const from = this.ids[this.count - 1]!
    const to = this.pool.allocate()
    this.pool.release(from)
    this.ids[this.count - 1] = to
    this.#revision++
    return { from, to, slots: this.#length % this.pageSize }
  }

  #grow(pages: number): void {
    const wider = new Int32Array(Math.max(pages, 2 * this.ids.length))
    wider.set(this.ids)
    this.ids = wider
  }
}
