/**
 * Content hash of a block: tokens [start, end) chained to the hash of the block before (or of the salt). A whole number
 * below 2⁵³. Hits are verified token by token, so a weak hash costs time and never a false hit.
 */
export type BlockHash = (parent: number, tokens: ArrayLike<number>, start: number, end: number) => number

/** Two multiply-rotate lanes after MurmurHash3 (Austin Appleby, public domain), 53 bits kept. */
export const hashBlock: BlockHash = (parent, tokens, start, end) => {
  let low = parent | 0
  let high = (parent / 0x100000000) | 0
  for (let i = start; i < end; i++) {
    const token = Math.imul(tokens[i]!, 0xcc9e2d51)
    const rotated = Math.imul((token << 15) | (token >>> 17), 0x1b873593)
    low ^= rotated
    low = (Math.imul((low << 13) | (low >>> 19), 5) + 0xe6546b64) | 0
    high ^= token
    high = (Math.imul((high << 17) | (high >>> 15), 0x85ebca6b) + low) | 0
  }
  low = mix(low ^ (end - start))
  high = mix(high ^ low)
  return (high & 0x1fffff) * 0x100000000 + (low >>> 0)
}

/** Hash of a salt, the root of its chains. */
export function hashSalt(salt: string): number {
  const units = new Int32Array(salt.length)
  for (let i = 0; i < salt.length; i++) units[i] = salt.charCodeAt(i)
  return hashBlock(0, units, 0, units.length)
}

function mix(value: number): number {
  let h = Math.imul(value ^ (value >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return h ^ (h >>> 16)
}
