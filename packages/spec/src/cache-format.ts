/** How one token's latent row lies in a page. Owns its arithmetic: nothing is guessed from a dtype. */
export interface CacheFormat {
  readonly name: string
  /** Width of the compressed latent: values [0, kvLoraRank) of a row. */
  readonly kvLoraRank: number
  /** Width of the rotary part: values [kvLoraRank, kvLoraRank + ropeDim) of a row. */
  readonly ropeDim: number
  readonly bytesPerToken: number
  /** Where the bytes of slot `slot` lie in a page of `pageSize` slots, in ascending order; `bytesPerToken` in all. */
  byteRanges(pageSize: number, slot: number): readonly { readonly offset: number; readonly length: number }[]
  /**
   * Writes the row `source[sourceOffset …]` into slot `slot` of `page` (`pageSize · bytesPerToken` bytes).
   * @throws InvalidArgumentError when slot, page or row don't fit
   */
  encode(source: Float32Array, sourceOffset: number, page: Uint8Array, pageSize: number, slot: number): void
  /**
   * Reads slot `slot` of `page` into `target[targetOffset …]`.
   * @throws InvalidArgumentError when slot, page or row don't fit
   */
  decode(page: Uint8Array, pageSize: number, slot: number, target: Float32Array, targetOffset: number): void
}

/** Paged latent cache of one layer, in a backend's memory: `[numBlocks, pageSize]` rows. */
export interface PagedCache {
  readonly format: CacheFormat
  readonly numBlocks: number
  readonly pageSize: number
  dispose(): void
}
