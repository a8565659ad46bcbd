/**
 * What a prefix cache knows of each block, column by column. Every column is `[numBlocks]`, tokens `[numBlocks, pageSize]`.
 * The columns of a block that is not stored mean nothing, but its tokens may be those of a live sequence.
 */
export interface BlockColumns {
  /** 1 where the content is stored: it can be found by its tokens. */
  readonly stored: Uint8Array
  /** The stored block before it, or −1 − salt for the first block of a chain. */
  readonly parent: Int32Array
  /** Stored blocks whose parent it is. */
  readonly children: Int32Array
  readonly hash: Float64Array
  /** Tick at which it was stored. */
  readonly storedAt: Float64Array
  /** Tick at which its last reference was dropped. */
  readonly idleSince: Float64Array
  /** Times that it was found. */
  readonly hits: Uint32Array
  /** Highest priority of a sequence that stored or found it. */
  readonly priority: Float64Array
  readonly tokens: Int32Array
}

export function blockColumns(numBlocks: number, pageSize: number): BlockColumns {
  return {
    stored: new Uint8Array(numBlocks),
    parent: new Int32Array(numBlocks),
    children: new Int32Array(numBlocks),
    hash: new Float64Array(numBlocks),
    storedAt: new Float64Array(numBlocks),
    idleSince: new Float64Array(numBlocks),
    hits: new Uint32Array(numBlocks),
    priority: new Float64Array(numBlocks),
    tokens: new Int32Array(numBlocks * pageSize),
  }
}
