import type { CacheFormat } from '@flashmla/spec'
import type { RopeConfig } from './config'
import { ropeFrequencies, rotate } from './rope'

/**
 * Moves cached rows by `delta` positions, in place: the rotary part is turned by delta · frequency, the latent part has no
 * position in it and stays. After the oldest tokens of a context are dropped, the rest are shifted by −dropped.
 * @param page one page in the format's layout, its slots [from, to) are shifted
 * @throws InvalidArgumentError when slot or page don't fit
 */
export function shiftSlots(
  format: CacheFormat,
  page: Uint8Array,
  pageSize: number,
  [from, to]: readonly [from: number, to: number],
  delta: number,
  rope: RopeConfig,
): void {
  const row = new Float32Array(format.kvLoraRank + format.ropeDim)
  const frequencies = ropeFrequencies(format.ropeDim, rope)
  // The last slot first: one past the page is refused before any is moved.
  if (from < to) format.decode(page, pageSize, to - 1, row, 0)
  for (let slot = from; slot < to; slot++) {
    format.decode(page, pageSize, slot, row, 0)
    // No magnitude: the row has it from when it was written.
    rotate(row, format.kvLoraRank, frequencies, delta, rope.interleaved)
    format.encode(row, 0, page, pageSize, slot)
  }
}
