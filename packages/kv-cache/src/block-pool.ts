import { InvalidArgumentError, OutOfPagesError } from '@flashmla/spec'

/** A fixed pool of reference-counted blocks. Allocation and release are O(1) and allocate no memory. */
export class BlockPool {
  readonly numBlocks: number
  readonly #references: Int32Array
  readonly #free: Int32Array
  #numFree: number

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
    this.#free = Int32Array.from({ length: numBlocks }, (_, i) => numBlocks - 1 - i)
    this.#numFree = numBlocks
  }

  get numFree(): number {
    return this.#numFree
  }

  references(block: number): number {
    return this.#references[this.#check(block)]!
  }

  /** @throws OutOfPagesError when no block is free */
  allocate(): number {
    if (this.#numFree === 0) throw new OutOfPagesError(1, 0)
    const block = this.#free[--this.#numFree]!
    this.#references[block] = 1
    return block
  }

  /** Adds a reference to a block in use. */
  retain(block: number): void {
    this.#checkUsed(block)
    this.#references[block]!++
  }

  /** Drops a reference; the last one frees the block. */
  release(block: number): void {
    this.#checkUsed(block)
    if (--this.#references[block]! === 0) this.#free[this.#numFree++] = block
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

  #checkUsed(block: number): void {
    if (this.#references[this.#check(block)] === 0) {
      throw new InvalidArgumentError(`Block ${block} is free already.`, 'Release each reference once.')
    }
  }
}
