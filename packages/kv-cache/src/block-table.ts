import { InvalidArgumentError } from '@flashmla/spec'
import type { PagedSequence } from './sequence'

export interface BlockTableOptions {
  readonly maxSequences: number
  /** Blocks of the longest sequence. */
  readonly maxBlocks: number
  /** What stands past a row's last block (default −1, which no kernel may read as a block). */
  readonly padding?: number
}

/** What a row last showed, to write only what has changed since. */
interface Row {
  sequence: PagedSequence | undefined
  revision: number
}

/** Block table and lengths of a batch in typed arrays that are sized once and updated in place: their addresses stay. */
export class BlockTable {
  /** `[maxSequences, maxBlocks]` */
  readonly blocks: Int32Array
  /** `[maxSequences]` tokens, 0 for an empty row. */
  readonly lengths: Int32Array
  readonly maxSequences: number
  /** Row stride. */
  readonly maxBlocks: number
  readonly #padding: number
  readonly #counts: Int32Array
  readonly #rows: Row[]

  constructor({ maxSequences, maxBlocks, padding = -1 }: BlockTableOptions) {
    for (const size of [maxSequences, maxBlocks]) {
      if (!Number.isInteger(size) || size < 1) {
        throw new InvalidArgumentError(
          `A block table of ${maxSequences} × ${maxBlocks} can't be made.`,
          'Give whole numbers ≥ 1.',
        )
      }
    }
    this.maxSequences = maxSequences
    this.maxBlocks = maxBlocks
    this.#padding = padding
    this.blocks = new Int32Array(maxSequences * maxBlocks).fill(padding)
    this.lengths = new Int32Array(maxSequences)
    this.#counts = new Int32Array(maxSequences)
    this.#rows = Array.from({ length: maxSequences }, () => ({ sequence: undefined, revision: 0 }))
  }

  /** True when `set(row, sequence)` would succeed. */
  canSet(row: number, sequence: PagedSequence): boolean {
    return Number.isInteger(row) && row >= 0 && row < this.maxSequences && sequence.numBlocks <= this.maxBlocks
  }

  /**
   * Shows the sequence in a row, writing only the blocks that changed since the row last showed it. Returns how many it wrote.
   * @throws InvalidArgumentError when the row or the sequence is past the table
   */
  set(row: number, sequence: PagedSequence): number {
    if (!this.canSet(row, sequence)) {
      throw new InvalidArgumentError(
        `Row ${row} with ${sequence.numBlocks} blocks is past a table of ${this.maxSequences} × ${this.maxBlocks}.`,
        'Make the table as large as the largest batch and the longest sequence.',
      )
    }
    const shown = this.#rows[row]!
    const before = this.#counts[row]!
    const same = shown.sequence === sequence && shown.revision === sequence.revision
    const count = sequence.numBlocks
    const first = same ? before : 0
    const start = row * this.maxBlocks
    if (count > first) {
      const { blocks } = sequence
      for (let i = first; i < count; i++) this.blocks[start + i] = blocks[i]!
    }
    if (before > count) this.blocks.fill(this.#padding, start + count, start + before)
    this.#counts[row] = count
    this.lengths[row] = sequence.length
    shown.sequence = sequence
    shown.revision = sequence.revision
    return Math.max(count - first, 0)
  }

  /** Empties a row. */
  clear(row: number): void {
    if (!Number.isInteger(row) || row < 0 || row >= this.maxSequences) {
      throw new InvalidArgumentError(`Row ${row} is past a table of ${this.maxSequences} rows.`, 'Clear rows it has.')
    }
    const start = row * this.maxBlocks
    this.blocks.fill(this.#padding, start, start + this.#counts[row]!)
    this.#counts[row] = 0
    this.lengths[row] = 0
    this.#rows[row]!.sequence = undefined
  }
}
