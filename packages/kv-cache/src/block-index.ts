/** Hash table from content hash to stored blocks, chained through typed arrays: no allocation after construction. */
export class BlockIndex {
  readonly #heads: Int32Array
  readonly #next: Int32Array
  readonly #hash: Float64Array
  readonly #mask: number

  /** `hash [numBlocks]` is the column that add and remove read. */
  constructor(hash: Float64Array) {
    const buckets = 2 ** Math.ceil(Math.log2(Math.max(2, hash.length)))
    this.#heads = new Int32Array(buckets).fill(-1)
    this.#next = new Int32Array(hash.length)
    this.#hash = hash
    this.#mask = buckets - 1
  }

  add(block: number): void {
    const bucket = this.#bucket(this.#hash[block]!)
    this.#next[block] = this.#heads[bucket]!
    this.#heads[bucket] = block
  }

  remove(block: number): void {
    const bucket = this.#bucket(this.#hash[block]!)
    let at = this.#heads[bucket]!
    if (at === block) {
      this.#heads[bucket] = this.#next[block]!
      return
    }
    while (this.#next[at] !== block) at = this.#next[at]!
    this.#next[at] = this.#next[block]!
  }

  clear(): void {
    this.#heads.fill(-1)
  }

  /** First block of the hash's bucket, or −1. Other hashes share a bucket: compare the content. */
  first(hash: number): number {
    return this.#heads[this.#bucket(hash)]!
  }

  /** The block after `block` in its bucket, or −1. */
  next(block: number): number {
    return this.#next[block]!
  }

  #bucket(hash: number): number {
    return hash & this.#mask
  }
}
