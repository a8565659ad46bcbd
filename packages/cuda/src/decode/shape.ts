import { InvalidArgumentError } from '@flashmla/spec'
import type { KernelEntry } from '../kernels/library'

export const QK_WIDTH = 576
export const VALUE_WIDTH = 512
/** Most query rows of a tile of the kernels for few of them. */
export const FEW_ROWS = 32
const SMALL_TILES = [16, FEW_ROWS] as const
/** Tokens that the kernels take at once. */
export const TOKEN_BLOCK = 64
/** By a small tile's rows and how many are beside each other: blocks of tokens a group up to which they are ahead of larger tiles, as measured. */
const MOST_BLOCKS: Readonly<Record<16 | 32, Readonly<Record<number, number>>>> = {
  16: { 2: 4, 4: 8, 8: 8 },
  32: { 2: 8, 4: 4 },
}

/** What a plan depends on. Lengths, block tables and query starts stay on the device and may change under it. */
export interface DecodeShape {
  readonly dtype: 'bf16' | 'f16'
  /** Sequences. */
  readonly batch: number
  /** Query rows of each sequence; the largest number of them when ragged. */
  readonly sQ: number
  /** Query heads. */
  readonly hQ: number
  readonly pageSize: number
  /** Query rows in all, when `queryStart` gives each sequence its own number; without it batch · sQ. */
  readonly totalQueries?: number
  readonly outDtype?: 'bf16' | 'f16' | 'f32'
  /**
   * Tokens in the cache, of all sequences together, that the plan is most likely used with. Results are right whatever it is: with few of them 17 to
   * 128 query rows are laid out so that a call is short, which takes longer than otherwise if there are many in the end.
   */
  readonly expectedTokens?: number
  /**
   * Tokens of the longest of those sequences, for speed only too. With 33 to 64 query rows each, 27 to 43 sequences on 132 multiprocessors are
   * merged in another way if they are about as long, which is quicker then and slower if not. Without it they are taken to differ.
   */
  readonly expectedLongest?: number
  /** Elements between two pages and two rows of the cache, multiples of 8; contiguous without them. */
  readonly kvPageStride?: number
  readonly kvRowStride?: number
}

/** @throws InvalidArgumentError naming the first value that doesn't fit */
export function checkShape(shape: DecodeShape): void {
  const { batch, sQ, hQ, pageSize, totalQueries = batch * sQ } = shape
  const { kvRowStride = QK_WIDTH, kvPageStride = pageSize * kvRowStride } = shape
  const { dtype, outDtype = dtype } = shape
  if (!['bf16', 'f16'].includes(dtype) || !['bf16', 'f16', 'f32'].includes(outDtype))
    throw new InvalidArgumentError(
      `The decode of ${dtype} to ${outDtype} is not known.`,
      'Take bf16 or f16, for the output f32 too.',
    )
  for (const [name, value] of Object.entries({ batch, sQ, hQ, pageSize })) {
    if (Number.isInteger(value) && value >= 1 && value < 2 ** 31) continue
    throw new InvalidArgumentError(`${name} is ${value}.`, 'Give a whole number from 1 on.')
  }
  if (!Number.isInteger(totalQueries) || totalQueries < 0 || totalQueries > batch * sQ)
    throw new InvalidArgumentError(
      `totalQueries is ${totalQueries} for ${batch} sequences of at most ${sQ} rows.`,
      'Give the last entry of queryStart, and as sQ the largest number of rows of a sequence.',
    )
  const { expectedTokens = 0, expectedLongest = 0 } = shape
  for (const [name, value, whose] of [
    ['expectedTokens', expectedTokens, 'all sequences have together'],
    ['expectedLongest', expectedLongest, 'the longest sequence has'],
  ] as const) {
    if (Number.isSafeInteger(value) && value >= 0) continue
    throw new InvalidArgumentError(
      `${name} is ${value}.`,
      `Give the whole number of tokens that ${whose}, about, or leave it out.`,
    )
  }
  const strides = Number.isSafeInteger(kvRowStride) && Number.isSafeInteger(kvPageStride)
  if (!strides || kvRowStride < QK_WIDTH || kvPageStride < pageSize * kvRowStride)
    throw new InvalidArgumentError(
      `Cache strides of ${kvPageStride} a page and ${kvRowStride} a row overlap for pages of ${pageSize}.`,
      `Give a row stride of ${QK_WIDTH} or more elements, and pages of pageSize rows.`,
    )
  // Every kernel reads rows 16 bytes at a time.
  if (kvRowStride % 8 !== 0 || kvPageStride % 8 !== 0)
    throw new InvalidArgumentError(
      `Cache strides of ${kvPageStride} a page and ${kvRowStride} a row are not aligned.`,
      'Give multiples of 8 elements.',
    )
}

/** Symbol of the decode kernel for a shape, before `scheduleDecode` chooses who merges. */
export function decodeSymbol(shape: DecodeShape, target: KernelEntry['target'], multiprocessors: number): string {
  const { dtype, pageSize } = shape
  if (target === 'compute_80') return `mla_decode_portable_${dtype}`
  const paged = pageSize % 64 === 0 || pageSize === 16 || pageSize === 32
  if (!paged) return `mla_decode_${dtype}_gather`
  const form = { 16: '_few', 32: '_few32', 64: '' }[tileRowsOf(shape, multiprocessors)]
  return `mla_decode_${dtype}${form}`
}

/**
 * Query rows of a tile. Of 17 to 128 rows several small ones stand beside each other where one or two large ones would do, while few blocks of
 * tokens come to each group of them: their kernels overlap the calls before and after, but read every token once for each tile.
 */
function tileRowsOf({ batch, sQ, hQ, expectedTokens }: DecodeShape, multiprocessors: number): 16 | 32 | 64 {
  const rows = sQ * hQ
  for (const tileRows of SMALL_TILES) {
    if (rows <= tileRows) return tileRows
    const tiles = tilesOfGroup(rows, tileRows)
    const most = MOST_BLOCKS[tileRows][tiles]
    if (most === undefined) continue
    const groups = Math.floor(multiprocessors / tiles)
    const inUse = Math.ceil(rows / tileRows) / tiles
    const isFew =
      expectedTokens === undefined
        ? tileRows === 32 && tiles === 2 && batch * 16 <= groups
        : batch * 4 <= groups && expectedTokens <= groups * most * inUse * TOKEN_BLOCK
    if (isFew) return tileRows
  }
  return 64
}

/** Small tiles beside each other: a power of two, since small blocks merge their rows. */
export function tilesOfGroup(rows: number, tileRows: number): number {
  return 2 ** Math.ceil(Math.log2(Math.ceil(rows / tileRows)))
}
