import type { EvictionPolicy } from './policy'

/** Indexed binary heap over typed arrays: the block of the smallest key goes first, among equals the longest idle. */
export class HeapPolicy implements EvictionPolicy {
  readonly #key: ArrayLike<number>
  readonly #idleSince: Float64Array
  readonly #heap: Int32Array
  /** Where a block stands in the heap. */
  readonly #place: Int32Array
  #size = 0

  constructor(key: ArrayLike<number>, idleSince: Float64Array) {
    this.#key = key
    this.#idleSince = idleSince
    this.#heap = new Int32Array(idleSince.length)
    this.#place = new Int32Array(idleSince.length)
  }

  get size(): number {
    return this.#size
  }

  insert(block: number): void {
    this.#rise(this.#size++, block)
  }

  remove(block: number): void {
    const hole = this.#place[block]!
    const last = this.#heap[--this.#size]!
    if (last === block) return
    if (this.#before(last, block)) this.#rise(hole, last)
    else this.#sink(hole, last)
  }

  evict(): number {
    const block = this.#heap[0]!
    this.remove(block)
    return block
  }

  #rise(hole: number, block: number): void {
    let at = hole
    while (at > 0) {
      const parent = (at - 1) >> 1
      const other = this.#heap[parent]!
      if (!this.#before(block, other)) break
      this.#put(at, other)
      at = parent
    }
    this.#put(at, block)
  }

  #sink(hole: number, block: number): void {
    let at = hole
    for (;;) {
      let child = 2 * at + 1
      if (child >= this.#size) break
      if (child + 1 < this.#size && this.#before(this.#heap[child + 1]!, this.#heap[child]!)) child++
      const other = this.#heap[child]!
      if (!this.#before(other, block)) break
      this.#put(at, other)
      at = child
    }
    this.#put(at, block)
  }

  #put(at: number, block: number): void {
    this.#heap[at] = block
    this.#place[block] = at
  }

  #before(a: number, b: number): boolean {
    const difference = this.#key[a]! - this.#key[b]!
    return difference < 0 || (difference === 0 && this.#idleSince[a]! < this.#idleSince[b]!)
  }
}
