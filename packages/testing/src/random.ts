/** Seeded source of test data (mulberry32): the same numbers on every machine. */
export class Random {
  #state: number
  constructor(seed: number) {
    this.#state = seed
  }

  /** In [0, 1). */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0
    let t = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }

  /** Whole, in [0, n). */
  below(n: number): number {
    return Math.floor(this.next() * n)
  }

  /**
   * `n` values of [−scale, scale] on a grid of scale / 128, so that bfloat16 holds each exactly and a backend that keeps
   * its weights or inputs in bfloat16 starts from the same numbers.
   */
  values(n: number, scale = 1): Float32Array {
    return Float32Array.from({ length: n }, () => ((this.below(257) - 128) / 128) * scale)
  }

  /** 0 … n − 1 in random order. */
  permutation(n: number): Int32Array {
    const order = Int32Array.from({ length: n }, (_, i) => i)
    for (let i = n - 1; i > 0; i--) {
      const j = this.below(i + 1)
      ;[order[i], order[j]] = [order[j]!, order[i]!]
    }
    return order
  }
}
