/** Names kept: enough for the kernels of an operation or two. */
const KEPT = 8

/**
 * What was queued last in a context. The device runs behind the host, so a kernel's failure comes back from a later call: these
 * names are then what is known of the cause.
 */
export class Trail {
  readonly #names = new Array<string>(KEPT)
  #count = 0

  add(name: string): void {
    this.#names[this.#count++ % KEPT] = name
  }

  /** The names, oldest first, a repeated one once with its number. */
  list(): string[] {
    const listed: { name: string; times: number }[] = []
    for (let i = Math.max(this.#count - KEPT, 0); i < this.#count; i++) {
      const name = this.#names[i % KEPT]!
      const last = listed.at(-1)
      if (last?.name === name) last.times++
      else listed.push({ name, times: 1 })
    }
    return listed.map(({ name, times }) => (times === 1 ? name : `${name} × ${times}`))
  }
}
