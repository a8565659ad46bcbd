import type { CacheFormat } from '@flashmla/spec'
import { InvalidArgumentError } from '@flashmla/spec'

/** The format with every call's slot, page and row checked before a byte is touched. */
export function checkedFormat(format: CacheFormat): CacheFormat {
  const width = format.kvLoraRank + format.ropeDim
  const check = (page: Uint8Array, pageSize: number, slot: number, row: Float32Array, offset: number) => {
    if (!Number.isInteger(slot) || slot < 0 || slot >= pageSize) {
      throw new InvalidArgumentError(
        `Slot ${slot} is not in a page of ${pageSize}.`,
        'Give a slot within the page: 0 … pageSize − 1.',
      )
    }
    if (page.length !== pageSize * format.bytesPerToken) {
      throw new InvalidArgumentError(
        `A ${format.name} page of ${pageSize} slots has ${pageSize * format.bytesPerToken} bytes, not ${page.length}.`,
        'Give exactly pageSize · bytesPerToken bytes.',
      )
    }
    if (!Number.isInteger(offset) || offset < 0 || offset + width > row.length) {
      throw new InvalidArgumentError(
        `A row of ${width} values at ${offset} doesn't fit an array of ${row.length}.`,
        'Give an array that holds the whole row: kvLoraRank + ropeDim values.',
      )
    }
  }
  return {
    ...format,
    encode(source, sourceOffset, page, pageSize, slot) {
      check(page, pageSize, slot, source, sourceOffset)
      format.encode(source, sourceOffset, page, pageSize, slot)
    },
    decode(page, pageSize, slot, target, targetOffset) {
      check(page, pageSize, slot, target, targetOffset)
      format.decode(page, pageSize, slot, target, targetOffset)
    },
  }
}
