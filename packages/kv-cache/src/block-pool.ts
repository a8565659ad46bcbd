import { InvalidArgumentError, OutOfPagesError } from '@flashmla/spec'

/** Keeps the content of blocks that nobody references, until their memory is needed. A pool has at most one. */
export interface Retention {
  /** Blocks kept idle; each can be evicted. */
  readonly numIdle: number
  /** True when the content of `block` may be found again, so that it must not be overwritten in place. */
  holds(block: number): boolean
  /** The last reference to `block` was dropped. False: nothing worth keeping, the block is free. */
  keep(block: number): boolean
  /** An idle block gets a reference again. */
  revive(block: number): void
  /** Gives up the content of one idle block and returns it. Called only while numIdle > 0. */
  evict(): number
}

/** Everything a pool knows, to save it and to load it again. */
export interface BlockPoolState {
  /** `[numBlocks]` references of each block. */
  readonly references: Int32Array
  /** Free blocks; the last one is allocated first. */
  readonly free: Int32Array
}

/**
 * A fixed pool of reference-counted blocks. Allocation and release are O(1) and allocate no memory.
 * With a {@link Retention} attached, idle blocks that it keeps count as free and are evicted when needed.
 */
export class BlockPool {
  readonly numBlocks: number
  readonly #references: Int32Array
  readonly #free: Int32Array
  #numUnused: number
  #retention: Retention | undefined

  /** @throws InvalidArgumentError unless numBlocks is a whole number in 1 … 2³¹ − 1 */
  constructor(numBlocks: number) {
    if (!Number.isInteger(numBlocks) || numBlocks < 1 || numBlocks > 0x7fffffff) {
      throw new InvalidArgumentError(
        `A pool of ${numBlocks} blocks can't be made.`,
        'Give a whole number from 1 to 2147483647.',
      )
    }
    this.numBlocks = numBlocks
    this.#references = new Int32Array(numBlocks)
    this.#free = new Int32Array(numBlocks)
    for (let i = 0; i < numBlocks; i++) this.#free[i] = numBlocks - 1 - i
    this.#numUnused = numBlocks
  }

  /** The pool that `state()` described. */
  static from(state: BlockPoolState): BlockPool {
    const pool = new BlockPool(state.references.length)
    pool.#references.set(state.references)
    pool.#free.set(state.free)
    pool.#numUnused = state.free.length
    return pool
  }

  state(): BlockPoolState {
    return { references: this.#references.slice(), free: this.#free.slice(0, this.#numUnused) }
  }

  /** Blocks that can be allocated: the unused ones and those only kept for their content. */
  get numFree(): number {
    return this.#numUnused + (this.#retention ? this.#retention.numIdle : 0)
  }

  /** Blocks that hold nothing: free without evicting anything. */
  get numUnused(): number {
    return this.#numUnused
  }

  get numUsed(): number {
    return this.numBlocks - this.numFree
  }

  references(block: number): number {
    return this.#references[this.#check(block)]!
  }

  /** True when the one holder of `block` may write to it: nobody else references it or may find its content. */
  isWritable(block: number): boolean {
    return this.#references[block] === 1 && !this.#retention?.holds(block)
  }

  /** @throws InvalidArgumentError when the pool has a retention already */
  attach(retention: Retention): void {
    if (this.#retention) {
      throw new InvalidArgumentError('The pool has a prefix cache already.', 'Give each cache a pool of its own.')
    }
    this.#retention = retention
  }

  /** Takes the retention away, which has given up all its blocks; another may be attached then. */
  detach(retention: Retention): void {
    if (this.#retention === retention) this.#retention = undefined
  }

  canAllocate(blocks = 1): boolean {
    return blocks <= this.numFree
  }

  /**
   * A block with one reference; evicts kept content when no block is unused.
   * @throws OutOfPagesError when no block is free
   */
  allocate(): number {
    let block: number
    if (this.#numUnused > 0) block = this.#free[--this.#numUnused]!
    else if (this.#retention && this.#retention.numIdle > 0) block = this.#retention.evict()
    else throw new OutOfPagesError(1, 0)
    this.#references[block] = 1
    return block
  }

  /** Adds a reference to a block in use, or to an idle one whose content is kept. */
  retain(block: number): void {
    if (this.#references[this.#check(block)] === 0) {
      if (!this.#retention?.holds(block)) throw freeAlready(block)
      this.#retention.revive(block)
    }
    this.#references[block]!++
  }

  /** Drops a reference; the last one frees the block. */
  release(block: number): void {
    if (this.#references[this.#check(block)] === 0) throw freeAlready(block)
    if (--this.#references[block]! > 0) return
    if (!this.#retention?.keep(block)) this.#free[this.#numUnused++] = block
  }

  /** Takes back an idle block whose content its retention has dropped. */
  reclaim(block: number): void {
    if (this.#references[this.#check(block)] !== 0 || this.#retention?.holds(block)) {
      throw new InvalidArgumentError(
        `Block ${block} is in use.`,
        'Reclaim idle blocks, after their content is dropped.',
      )
    }
    this.#free[this.#numUnused++] = block
  }

  #check(block: number): number {
    if (!Number.isInteger(block) || block < 0 || block >= this.numBlocks) {
      throw new InvalidArgumentError(
        `Block ${block} is not in a pool of ${this.numBlocks}.`,
        'Pass ids that allocate() gave.',
      )
    }
    return block
  }
}

function freeAlready(block: number): InvalidArgumentError {
  return new InvalidArgumentError(`Block ${block} is free already.`, 'Release each reference once.')
}
