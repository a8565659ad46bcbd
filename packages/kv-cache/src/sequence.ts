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
  readonly #pool: BlockPool
  #blocks: number[] = []
  #length = 0
  #freed = false

  constructor(pool: BlockPool, pageSize: number) {
    if (!Number.isInteger(pageSize) || pageSize < 1) {
      throw new InvalidArgumentError(
        `A page of ${pageSize} tokens can't be made.`,
        'Give a whole page size ≥ 1; 64 is the fast one.',
      )
    }
    this.#pool = pool
    this.pageSize = pageSize
  }

  /** Tokens held. */
  get length(): number {
    return this.#length
  }

  get blocks(): readonly number[] {
    return this.#blocks
  }

  /** True when `append(tokens)` would succeed. */
  canAppend(tokens: number): boolean {
    return this.pagesNeeded(tokens) <= this.#pool.numFree
  }

  /**
   * Makes room for `tokens` more. A shared partial last block is replaced by a fresh one: make the returned copy first.
   * @throws OutOfPagesError when the pool is too small
   */
  append(tokens: number): BlockCopy | undefined {
    this.#alive()
    if (!Number.isInteger(tokens) || tokens < 0) {
      throw new InvalidArgumentError(`${tokens} tokens can't be appended.`, 'Give a whole number ≥ 0.')
    }
    const needed = this.pagesNeeded(tokens)
    if (needed > this.#pool.numFree) throw new OutOfPagesError(needed, this.#pool.numFree)
    let copy: BlockCopy | undefined
    if (tokens > 0 && this.#lastIsShared()) {
      const from = this.#blocks[this.#blocks.length - 1]!
      const to = this.#pool.allocate()
      this.#pool.release(from)
      this.#blocks[this.#blocks.length - 1] = to
      copy = { from, to, slots: this.#length % this.pageSize }
    }
    const pages = Math.ceil((this.#length + tokens) / this.pageSize)
    while (this.#blocks.length < pages) this.#blocks.push(this.#pool.allocate())
    this.#length += tokens
    return copy
  }

  /** A sequence that shares every page; the partial last one is copied on the first append of either. */
  fork(): PagedSequence {
    this.#alive()
    const child = new PagedSequence(this.#pool, this.pageSize)
    for (const block of this.#blocks) this.#pool.retain(block)
    child.#blocks = [...this.#blocks]
    child.#length = this.#length
    return child
  }

  /** Forgets the tokens from `length` on, and frees their pages. */
  truncate(length: number): void {
    this.#alive()
    if (!Number.isInteger(length) || length < 0 || length > this.#length) {
      throw new InvalidArgumentError(
        `A sequence of ${this.#length} tokens can't be truncated to ${length}.`,
        'Give a whole number from 0 to its length.',
      )
    }
    const pages = Math.ceil(length / this.pageSize)
    while (this.#blocks.length > pages) this.#pool.release(this.#blocks.pop()!)
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
    return this.#blocks[Math.floor(token / this.pageSize)]! * this.pageSize + (token % this.pageSize)
  }

  #lastIsShared(): boolean {
    return this.#length % this.pageSize !== 0 && this.#pool.references(this.#blocks[this.#blocks.length - 1]!) > 1
  }

  /** Pages that `append(tokens)` would take from the pool. */
  pagesNeeded(tokens: number): number {
    const pages = Math.ceil((this.#length + tokens) / this.pageSize) - this.#blocks.length
    return pages + (tokens > 0 && this.#lastIsShared() ? 1 : 0)
  }

  #alive(): void {
    if (this.#freed) throw new InvalidArgumentError('The sequence was freed.', 'Make a new one.')
  }
}
