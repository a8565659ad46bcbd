import type { BlockPool, PagedSequence } from '@flashmla/kv-cache'

/** What the scheduler asks of a cache that remembers the pages of past prompts. */
export interface PrefixStore {
  /** A sequence that starts with the longest remembered prefix of `tokens`, its last token excepted. */
  open(tokens: readonly number[], salt: string): PagedSequence
  /** Remembers the full pages that `tokens` fills in `sequence`. */
  commit(sequence: PagedSequence, tokens: readonly number[], salt: string): void
  /** Frees remembered pages that no sequence uses until `pages` are free; false when that can't be. */
  reclaim(pages: number): boolean
  /** Pages remembered and used by no sequence. */
  readonly idlePages: number
  readonly idleBlocks: Iterable<number>
  clear(): void
}

interface Node {
  readonly block: number
  /** Holds the pages from the root down to this one, which keeps them allocated. */
  readonly sequence: PagedSequence
  readonly parent: Node | undefined
  readonly key: string
  readonly children: Map<string, Node>
  used: number
}

/**
 * A radix tree of full pages, keyed by the tokens themselves: what matches is equal, not merely of equal hash.
 * Tail pages go first, the longest unused of them before the others.
 */
export class RadixPrefixStore implements PrefixStore {
  readonly #roots = new Map<string, Node>()
  readonly #nodes = new Set<Node>()
  #clock = 0

  constructor(
    private readonly pool: BlockPool,
    private readonly pageSize: number,
    private readonly empty: () => PagedSequence,
    private readonly enabled: boolean,
  ) {}

  open(tokens: readonly number[], salt: string): PagedSequence {
    if (!this.enabled) return this.empty()
    let found: Node | undefined
    for (let end = this.pageSize; end < tokens.length; end += this.pageSize) {
      const next = this.#children(found).get(this.#key(found, tokens, end, salt))
      if (!next) break
      next.used = ++this.#clock
      found = next
    }
    return found ? found.sequence.fork() : this.empty()
  }

  commit(sequence: PagedSequence, tokens: readonly number[], salt: string): void {
    if (!this.enabled) return
    let at: Node | undefined
    for (let end = this.pageSize; end <= sequence.length; end += this.pageSize) {
      const key = this.#key(at, tokens, end, salt)
      let next = this.#children(at).get(key)
      if (!next) {
        const held = sequence.fork()
        held.truncate(end)
        const block = held.blocks[held.blocks.length - 1]!
        next = { block, sequence: held, parent: at, key, children: new Map(), used: 0 }
        this.#children(at).set(key, next)
        this.#nodes.add(next)
      }
      next.used = ++this.#clock
      // Computed twice at the same time: the other's pages are the remembered ones, and these hang on nothing.
      if (next.block !== sequence.blocks[end / this.pageSize - 1]) return
      at = next
    }
  }

  reclaim(pages: number): boolean {
    while (this.pool.numFree < pages) {
      let victim: Node | undefined
      for (const node of this.#nodes) {
        if (node.children.size > 0 || this.pool.references(node.block) > 1) continue
        if (!victim || node.used < victim.used) victim = node
      }
      if (!victim) return false
      this.#remove(victim)
    }
    return true
  }

  get idlePages(): number {
    let count = 0
    for (const _ of this.idleBlocks) count++
    return count
  }

  get idleBlocks(): Iterable<number> {
    return this.#idle()
  }

  clear(): void {
    for (const node of this.#nodes) node.sequence.free()
    this.#nodes.clear()
    this.#roots.clear()
  }

  *#idle(): Generator<number> {
    for (const node of this.#nodes) {
      // One reference of its own and one of each node below: any further one belongs to a live sequence.
      if (this.pool.references(node.block) === this.#size(node)) yield node.block
    }
  }

  #size(node: Node): number {
    let size = 1
    for (const child of node.children.values()) size += this.#size(child)
    return size
  }

  #remove(node: Node): void {
    this.#children(node.parent).delete(node.key)
    this.#nodes.delete(node)
    node.sequence.free()
  }

  #children(node: Node | undefined): Map<string, Node> {
    return node ? node.children : this.#roots
  }

  #key(parent: Node | undefined, tokens: readonly number[], end: number, salt: string): string {
    const page = tokens.slice(end - this.pageSize, end).join()
    return parent ? page : `${salt}\u0000${page}`
  }
}
