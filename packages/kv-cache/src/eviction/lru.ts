import type { EvictionPolicy } from './policy'

/**
 * Doubly linked list through typed arrays, longest idle first. A block that just became idle goes to the end; one that
 * became a leaf when its last child was evicted goes to where its idle time belongs, which is at or near the front.
 */
export class LruPolicy implements EvictionPolicy {
  readonly #idleSince: Float64Array
  readonly #next: Int32Array
  readonly #previous: Int32Array
  #first = -1
  #last = -1
  #size = 0

  constructor(idleSince: Float64Array) {
    this.#idleSince = idleSince
    this.#next = new Int32Array(idleSince.length)
    this.#previous = new Int32Array(idleSince.length)
  }

  get size(): number {
    return this.#size
  }

  insert(block: number): void {
    const since = this.#idleSince[block]!
    let before = this.#last
    if (before >= 0 && this.#idleSince[before]! > since) {
      let after = this.#first
      while (this.#idleSince[after]! <= since) after = this.#next[after]!
      before = this.#previous[after]!
    }
    this.#link(before, block)
    this.#size++
  }

  remove(block: number): void {
    const before = this.#previous[block]!
    const after = this.#next[block]!
    if (before < 0) this.#first = after
    else this.#next[before] = after
    if (after < 0) this.#last = before
    else this.#previous[after] = before
    this.#size--
  }

  evict(): number {
    const block = this.#first
    this.remove(block)
    return block
  }

  #link(before: number, block: number): void {
    const after = before < 0 ? this.#first : this.#next[before]!
    this.#previous[block] = before
    this.#next[block] = after
    if (before < 0) this.#first = block
    else this.#next[before] = block
    if (after < 0) this.#last = block
    else this.#previous[after] = block
  }
}
