import type { DeviceInfo } from '../driver/context'
import type { KernelEntry, KernelLibrary } from '../kernels/library'
import { SPLIT_BYTES } from '../kernels/params'
import { type DecodeShape, decodeSymbol, FEW_ROWS, QK_WIDTH, TOKEN_BLOCK, tilesOfGroup, VALUE_WIDTH } from './shape'

const MAX_TILES_PER_GROUP = 4
/** Bytes of a part that a block hands over to another, by the rows of a tile: words of 16 bytes for each of 256 threads. */
const PART_BYTES: Readonly<Record<number, number>> = { 16: 7 * 256 * 16, 32: 11 * 256 * 16, 64: 18 * 256 * 16 }
/** Bytes of 16 rows of a part that a kernel beside the decode merges, of few rows: f16, and an exponent for every eight values. */
const PART_BYTES_BESIDE = 16 * 512 * 2 + 4 * 256
/** A block of that kernel takes 8 of a part's 1024 words or more. */
const MOST_PIECES_LOG2 = 7
/** Sequences of a ragged plan that it looks through for what there is to merge. */
const MOST_RAGGED = 128

/** By the rows of a tile group, what the kernel is called by that merges its parts in small blocks. */
type CombinedRows = '' | '32' | '64' | '128'
const COMBINED_ROWS: Readonly<Record<number, CombinedRows>> = { 16: '', 32: '32', 64: '64', 128: '128' }

/** Whether a tile's blocks hand its parts to each other: where those are few, as measured. Of tiles by themselves they may be more, if lengths are alike. */
const handsOver = (few: boolean, parts: number, alike: boolean) =>
  few ? parts < 4 : parts <= 3 || (alike && parts < 5)
/** How many times the average of sequences that are alike the longest of them has at most, as measured. */
const MOST_UNLIKE = 1.25
/** Lead of the first of them, for what handing over takes, as measured. */
const FIRST_LEAD = 2
/** Tiles of 64 rows up to which a kernel of its own merges their parts where tokens aren't known: ahead with 2000 to 6000 of them, as measured. */
const MOST_COMBINED = 2
/** Share of memory's nominal rate at which workers ask for their latent rows, as measured: more, and it gives less. */
const PACE = 0.9
const BLOCK_BYTES = TOKEN_BLOCK * QK_WIDTH * 2
/** Bound that keeps the kernels' 32-bit arithmetic right: 0.08 TB/s, far below what a Hopper card has. */
const MOST_BLOCK_PS = 1_000_000

export interface DecodeSchedule {
  /** Symbol of the decode kernel. */
  readonly symbol: string
  readonly workers: number
  readonly tilesPerGroup: number
  /** Groups of row tiles of a sequence. */
  readonly groups: number
  readonly tileRows: number
  readonly minBlocks: number
  readonly tileOverhead: number
  readonly splitByTile: boolean
  /** Blocks of 64 tokens that the first of a tile's equal pieces has more than the others, whose parts it takes in. */
  readonly firstLead: number
  /** Picoseconds in which all workers together may ask for the latent rows of 64 tokens; 0: without a pace. */
  readonly blockPs: number
  readonly decodeGrid: readonly [number, number]
  /** The kernel that merges the parts of split tiles; without it the decode kernel does. */
  readonly combine?: {
    readonly symbol: `mla_combine${'' | '_rows'}${'' | '_f16'}` | `mla_combine_few${CombinedRows}${'' | '_ragged'}`
    readonly grid: CombineGrid
  }
  /** Bytes of work memory by their place in the kernels' parameters, 0 for what they don't use. */
  readonly workspace: Readonly<Record<WorkMemory, number>>
  /** What every byte of it is before the first launch, where that matters; the kernels leave it so. */
  readonly filled: Readonly<Partial<Record<WorkMemory, number>>>
}

type CombineGrid = readonly [number, number, number]
type WorkMemory = 'partial_out' | 'partial_lse' | 'splits' | 'parts_ready'

const blockPicoseconds = (rate: number) =>
  rate > 0 ? Math.min(Math.round((BLOCK_BYTES * 1e12) / (PACE * rate)), MOST_BLOCK_PS) : 0

/** The schedule of a shape with a library's kernels. @throws UnsupportedError without a kernel for the device */
export function scheduleWith(library: KernelLibrary, shape: DecodeShape): DecodeSchedule {
  const { device } = library.context
  const symbol = decodeSymbol(shape, library.target, device.multiprocessors)
  return scheduleDecode(shape, library.entry(symbol), device)
}

/** Grids and workspace of a shape on a device: the arithmetic of kernels/README.md, "Decode launch plan". */
export function scheduleDecode(shape: DecodeShape, entry: KernelEntry, device: DeviceInfo): DecodeSchedule {
  const portable = entry.target === 'compute_80'
  const tileRows = entry.tileRows!
  const rows = shape.sQ * shape.hQ
  const tiles = Math.ceil(rows / tileRows)
  const few = !portable && tileRows <= FEW_ROWS
  const tilesPerGroup = few ? tilesOfGroup(rows, tileRows) : Math.min(tiles, MAX_TILES_PER_GROUP)
  const slots = portable ? device.multiprocessors * 2 : Math.floor(device.multiprocessors / entry.cluster)
  const workers = Math.max(Math.floor(slots / tilesPerGroup), 1) * tilesPerGroup
  const groups = Math.ceil(tiles / tilesPerGroup)
  const allGroups = shape.batch * groups
  const groupWorkers = workers / tilesPerGroup
  const splitByTile = allGroups <= groupWorkers
  const grids = {
    workers,
    tilesPerGroup,
    groups,
    tileRows,
    minBlocks: portable || few ? 1 : 2,
    tileOverhead: portable ? 1 : 2,
    splitByTile,
    firstLead: 0,
    blockPs: portable ? 0 : blockPicoseconds(device.memoryBytesPerSecond),
    decodeGrid: [workers * entry.cluster, 1],
  } as const
  const hopper = !portable && !entry.symbol.endsWith('_gather')
  const ragged = shape.totalQueries !== undefined
  // Who merges the parts of split tiles: blocks hand them to others where parts are few; beyond, all of them share it, or a kernel beside the decode.
  const looksThrough = !ragged || (splitByTile && shape.batch <= MOST_RAGGED)
  // All sequences of a ragged plan but one may be empty. Beyond few rows handing over is at its worst then.
  const expected = few ? expectedTiles(shape) : ragged ? groups : allGroups
  const alike = tilesPerGroup === 1 && areAlike(shape)
  // Small tiles beside each other, whose blocks can't, have four parts or more and few sequences: see `decodeSymbol`.
  const handedOn = handsOver(few, groupWorkers / expected, alike) || (few && !looksThrough)
  if (hopper && handedOn) {
    return {
      ...grids,
      firstLead: few ? 0 : FIRST_LEAD,
      // Tiles beside each other are bound by their products, and the code alone costs them 1 to 2 %.
      symbol: `${entry.symbol}_merge${few || tilesPerGroup > 1 ? '' : '_paced'}`,
      ...handedOver(few, workers, tileRows),
    }
  }
  const isLittle = shape.batch * tiles <= MOST_COMBINED && shape.expectedTokens === undefined
  if (hopper && !few && !isLittle) {
    return { ...grids, tileOverhead: 3, symbol: `${entry.symbol}_share`, ...shared(workers, tileRows) }
  }
  const entries = splitByTile ? allGroups : groupWorkers
  const most = 2 * device.multiprocessors
  const combined = { partial_lse: 2 * workers * tileRows * 8, splits: groupWorkers * SPLIT_BYTES, parts_ready: 0 }
  if (few) {
    const combineFew = `mla_combine_few${COMBINED_ROWS[tileRows * tilesPerGroup]!}` as const
    return {
      ...grids,
      symbol: entry.symbol,
      combine: ragged
        ? { symbol: `${combineFew}_ragged`, grid: [most, 1, 1] }
        : { symbol: combineFew, grid: fewGrid(entries, most) },
      workspace: { ...combined, partial_out: ((2 * workers * tileRows) / 16) * PART_BYTES_BESIDE },
      filled: {},
    }
  }
  const halves = !portable && rows > 32
  const grid = combineGrid(entries, Math.min(tileRows * tilesPerGroup, rows), groupWorkers, most)
  // Rows of few parts each: half as many warps, which have all parts of theirs on the way at once.
  const byRow = !portable && grid[2] === 1
  return {
    ...grids,
    symbol: entry.symbol,
    combine: { symbol: `mla_combine${byRow ? '_rows' : ''}${halves ? '_f16' : ''}`, grid },
    workspace: { ...combined, partial_out: 2 * workers * tileRows * VALUE_WIDTH * (halves ? 2 : 4) },
    filled: {},
  }
}

/** Whether sequences are expected to have about as many tokens each. */
function areAlike({ batch, expectedTokens, expectedLongest }: DecodeShape): boolean {
  if (expectedTokens === undefined || expectedLongest === undefined) return false
  return expectedLongest * batch <= expectedTokens * MOST_UNLIKE
}

/** Tiles of few rows: a sequence that has queries has one. */
function expectedTiles({ batch, totalQueries = batch }: DecodeShape): number {
  return Math.min(batch, totalQueries)
}

/** Work memory of parts that a block hands over to another, which waits for a flag, or for something else than a NaN that nothing yields. */
function handedOver(few: boolean, workers: number, tileRows: number): Pick<DecodeSchedule, 'workspace' | 'filled'> {
  const parts = { partial_out: workers * PART_BYTES[tileRows]!, partial_lse: 0, splits: 0 }
  return few
    ? { workspace: { ...parts, parts_ready: 0 }, filled: { partial_out: 0xff } }
    : { workspace: { ...parts, parts_ready: workers * 4 }, filled: { parts_ready: 0 } }
}

/** Work memory of parts whose rows all blocks of a tile merge: f16, each row's log-sum-exp, which is waited for, and two flags a block. */
function shared(workers: number, tileRows: number): Pick<DecodeSchedule, 'workspace' | 'filled'> {
  const rows = 2 * workers * tileRows
  return {
    workspace: { partial_out: rows * VALUE_WIDTH * 2, partial_lse: rows * 8, splits: 0, parts_ready: 2 * workers * 4 },
    filled: { partial_lse: 0xff, parts_ready: 0 },
  }
}

/** Blocks that merge: entries of tile groups, rows of them, and halves of a row. `most` run at once. */
function combineGrid(entries: number, groupRows: number, groupWorkers: number, most: number): CombineGrid {
  // Little to merge, in many parts each: threads share the parts too.
  if (entries * groupRows <= 512 && groupWorkers >= 8 * entries) return [entries, groupRows, 2]
  return [entries, Math.max(Math.min(groupRows, Math.floor(most / entries)), 1), 1]
}

/** Small blocks that merge: entries of tiles, and pieces of a tile, a power of two up to 128. `most` run at once. */
function fewGrid(entries: number, most: number): CombineGrid {
  const fitting = Math.floor(Math.log2(Math.max(most / entries, 1)))
  return [entries, 2 ** Math.min(fitting, MOST_PIECES_LOG2), 1]
}
