import type { CacheFormat, PagedCache } from '@flashmla/spec'
import { DisposedError, InvalidArgumentError } from '@flashmla/spec'

interface Page {
  readonly bytes: Uint8Array
  /** 1 for each slot that holds a row. */
  readonly written: Uint8Array
}

/** Paged cache of the reference: a page's bytes are made when it is first written, and a slot is read only once written. */
export class CpuCache implements PagedCache {
  readonly #pages = new Map<number, Page>()
  #disposed = false

  constructor(
    readonly format: CacheFormat,
    readonly numBlocks: number,
    readonly pageSize: number,
  ) {
    for (const [name, value] of Object.entries({ numBlocks, pageSize })) {
      if (!Number.isSafeInteger(value) || value < 1) {
        throw new InvalidArgumentError(`${name} is ${value}.`, 'Give a whole number ≥ 1.')
      }
    }
  }

  /** @throws InvalidArgumentError when the slot is not in the cache */
  checkSlot(slot: number): void {
    this.#alive()
    if (slot >= this.numBlocks * this.pageSize) {
      throw new InvalidArgumentError(
        `Slot ${slot} is past the cache's ${this.numBlocks} pages of ${this.pageSize}.`,
        'Take slots from the block table.',
      )
    }
  }

  /** Encodes the row `source[offset …]` into slot `slot` of the whole cache. */
  write(slot: number, source: Float32Array, offset: number): void {
    this.checkSlot(slot)
    const page = this.#page(Math.floor(slot / this.pageSize))
    this.format.encode(source, offset, page.bytes, this.pageSize, slot % this.pageSize)
    page.written[slot % this.pageSize] = 1
  }

  /** @throws InvalidArgumentError when nothing was written there */
  checkWritten(block: number, offset: number): void {
    this.#alive()
    if (!this.#pages.get(block)?.written[offset]) {
      throw new InvalidArgumentError(
        `Slot ${offset} of page ${block} is read before it was written.`,
        'Append before attending, and check the block table.',
      )
    }
  }

  /** @throws InvalidArgumentError when nothing was written there */
  read(block: number, offset: number, target: Float32Array, targetOffset: number): void {
    this.checkWritten(block, offset)
    this.format.decode(this.#page(block).bytes, this.pageSize, offset, target, targetOffset)
  }

  /** Copies the bytes of slots [0, slots), written or not, between pages of the cache. */
  copy(from: number, to: number, slots: number): void {
    this.#alive()
    const [source, target] = [this.#page(from), this.#page(to)]
    for (let slot = 0; slot < slots; slot++) {
      for (const { offset, length } of this.format.byteRanges(this.pageSize, slot)) {
        target.bytes.set(source.bytes.subarray(offset, offset + length), offset)
      }
      target.written[slot] = source.written[slot]!
    }
  }

  dispose(): void {
    this.#disposed = true
    this.#pages.clear()
  }

  #page(block: number): Page {
    let page = this.#pages.get(block)
    if (!page) {
      page = {
        bytes: new Uint8Array(this.pageSize * this.format.bytesPerToken),
        written: new Uint8Array(this.pageSize),
      }
      this.#pages.set(block, page)
    }
    return page
  }

  #alive(): void {
    if (this.#disposed) throw new DisposedError('A cache')
  }
}
