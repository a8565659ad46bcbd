import fc from 'fast-check'
import { expect, test } from 'vitest'
import type { KernelEntry } from '../kernels/library'
import { SPLIT_BYTES } from '../kernels/params'
import { H100, plan } from '../testing/plans'
import type { DecodeShape } from './shape'

test('the pace of loads is nine tenths of the memory rate, where that is known', () => {
  expect(plan().blockPs).toBe(24437)
  expect(plan({ hQ: 16 }).blockPs).toBe(24437)
  expect(plan({}, 'sm_90a', { ...H100, memoryBytesPerSecond: 4.9e12 }).blockPs).toBe(16718)
  expect(plan({}, 'sm_90a', { ...H100, memoryBytesPerSecond: 0 }).blockPs).toBe(0)
  expect(plan({}, 'sm_90a', { ...H100, memoryBytesPerSecond: 1 }).blockPs).toBe(1_000_000)
  expect(plan({}, 'compute_80').blockPs).toBe(0)
})

test('batch 128 of 128 heads: 66 pairs of blocks side by side, which merge their parts themselves', () => {
  const found = plan()
  expect(found).toMatchObject({
    symbol: 'mla_decode_bf16_merge',
    tileRows: 64,
    workers: 132,
    tilesPerGroup: 2,
    splitByTile: false,
    decodeGrid: [132, 1],
    groups: 1,
    workspace: { partial_out: 132 * 18 * 256 * 16, partial_lse: 0, splits: 0, parts_ready: 132 * 4 },
    filled: { parts_ready: 0 },
  })
  expect(found.combine).toBeUndefined()
})

test('up to 16 rows a sequence: tiles of 16, whose parts are handed over by what is not there yet', () => {
  const found = plan({ hQ: 16 })
  expect(found).toMatchObject({ symbol: 'mla_decode_bf16_few_merge', tileRows: 16, tilesPerGroup: 1, groups: 1 })
  const none = { partial_lse: 0, splits: 0, parts_ready: 0 }
  expect(found.workspace).toEqual({ ...none, partial_out: 132 * 7 * 256 * 16 })
  expect(found.filled).toEqual({ partial_out: 255 })
  const twice = plan({ hQ: 32 })
  expect(twice).toMatchObject({ symbol: 'mla_decode_bf16_few32_merge', tileRows: 32, tilesPerGroup: 1, groups: 1 })
  expect(twice.workspace).toEqual({ ...none, partial_out: 132 * 11 * 256 * 16 })
  expect(twice.filled).toEqual({ partial_out: 255 })
})

test.each([16, 32])(
  'up to %i rows, parts are merged by small blocks: pieces of a tile, and of what a ragged plan has',
  (hQ) => {
    const combineOf = (overrides: Partial<DecodeShape>) => plan({ hQ, ...overrides }).combine
    const symbol = hQ === 16 ? 'mla_combine_few' : 'mla_combine_few32'
    const by = (...grid: number[]) => ({ symbol, grid })
    expect(combineOf({ batch: 1 })).toEqual(by(1, 128, 1))
    expect(combineOf({ batch: 4 })).toEqual(by(4, 64, 1))
    expect(combineOf({ batch: 8 })).toEqual(by(8, 32, 1))
    expect(combineOf({ batch: 20 })).toEqual(by(20, 8, 1))
    expect(combineOf({ batch: 32 })).toEqual(by(32, 8, 1))
    expect(combineOf({ batch: 64, totalQueries: 4 })).toEqual({ symbol: `${symbol}_ragged`, grid: [264, 1, 1] })
    expect(plan({ batch: 8, hQ })).toMatchObject({ splitByTile: true, filled: {} })
    expect(plan({ batch: 8, hQ }).workspace.partial_out).toBe(2 * 132 * (hQ / 16) * (16 * 512 * 2 + 1024))
  },
)

test.each([
  [32, 16, 2, '32'],
  [40, 16, 4, '64'],
  [128, 16, 8, '128'],
  [40, 32, 2, '64'],
  [64, 32, 2, '64'],
  [65, 32, 4, '128'],
  [128, 32, 4, '128'],
])(
  'of %i rows and few tokens, tiles of %i stand beside each other by %i and are merged together',
  (hQ, tileRows, tiles, merged) => {
    // Five sequences or eight are too many for tiles of 16.
    const shape = { batch: tileRows === 16 ? 4 : hQ > 64 ? 5 : 16, hQ, expectedTokens: 1000 }
    const workers = Math.floor(132 / tiles) * tiles
    const found = plan(shape)
    expect(found).toMatchObject({
      symbol: `mla_decode_bf16_few${tileRows === 16 ? '' : 32}`,
      tileRows,
      tilesPerGroup: tiles,
      groups: 1,
      workers,
      splitByTile: true,
      firstLead: 0,
      combine: { symbol: `mla_combine_few${merged}` },
      workspace: {
        partial_out: 2 * workers * (tileRows / 16) * 17408,
        partial_lse: 2 * workers * tileRows * 8,
        splits: (workers / tiles) * 32,
      },
    })
    const ragged = plan({ ...shape, totalQueries: 1 })
    expect(ragged.combine).toEqual({ symbol: `mla_combine_few${merged}_ragged`, grid: [264, 1, 1] })
  },
)

test('tiles of many parts are merged by all their blocks: rows in f16, what is waited for, and two flags a block', () => {
  const found = plan({ batch: 8 })
  expect(found).toMatchObject({ symbol: 'mla_decode_bf16_share', workers: 132, tilesPerGroup: 2 })
  expect(found.combine).toBeUndefined()
  const rows = 2 * 132 * 64
  expect(found.workspace).toEqual({
    partial_out: rows * 512 * 2,
    partial_lse: rows * 8,
    splits: 0,
    parts_ready: 264 * 4,
  })
  expect(found.filled).toEqual({ partial_lse: 255, parts_ready: 0 })
})

test('mla_combine merges two tiles of tokens that are not known, and what is gathered: a block for half a row, or two blocks a multiprocessor', () => {
  const halfRows = { splitByTile: true, combine: { symbol: 'mla_combine_f16', grid: [1, 33, 2] } }
  expect(plan({ batch: 1, hQ: 33, pageSize: 1 })).toMatchObject({ workers: 132, ...halfRows })
  expect(plan({ batch: 1 }).combine).toEqual({ symbol: 'mla_combine_f16', grid: [1, 128, 2] })
  const gathered = (overrides: Partial<DecodeShape>) => plan({ pageSize: 1, ...overrides })
  expect(gathered({ batch: 4, hQ: 17, totalQueries: 4 })).toMatchObject({
    splitByTile: true,
    combine: { grid: [4, 17, 2] },
  })
  const many = gathered({ batch: 140, hQ: 17 })
  expect(many).toMatchObject({ splitByTile: false, combine: { symbol: 'mla_combine_rows', grid: [132, 2, 1] } })
  expect(gathered({ batch: 14, hQ: 17 })).toMatchObject({ splitByTile: true, combine: { grid: [14, 17, 2] } })
  const rows = { splitByTile: true, combine: { symbol: 'mla_combine_rows_f16', grid: [20, 13, 1] } }
  expect(gathered({ batch: 20, hQ: 96 })).toMatchObject(rows)
  const eight = gathered({ batch: 8 })
  expect(eight).toMatchObject({ splitByTile: true, combine: { symbol: 'mla_combine_rows_f16', grid: [8, 33, 1] } })
  expect(eight.workspace).toEqual({
    partial_out: 2 * 132 * 64 * 512 * 2,
    partial_lse: 2 * 132 * 64 * 8,
    splits: 66 * 32,
    parts_ready: 0,
  })
})

test('parts of more than 32 rows are kept for mla_combine in f16, by the Hopper kernel', () => {
  const lse = 2 * 132 * 64 * 8
  const f16 = plan({ batch: 1, hQ: 65 })
  expect([f16.combine!.symbol, f16.workspace.partial_out]).toEqual(['mla_combine_f16', lse * 128])
  const f32 = plan({ batch: 1, hQ: 16, sQ: 2, pageSize: 1 })
  expect([f32.combine!.symbol, f32.workspace.partial_out]).toEqual(['mla_combine', lse * 256])
  expect(plan({ hQ: 128 }, 'compute_80').combine!.symbol).toBe('mla_combine')
})

test('the portable kernel takes 16 rows a tile and two blocks a multiprocessor', () => {
  expect(plan({}, 'compute_80', { ...H100, multiprocessors: 108 })).toMatchObject({
    symbol: 'mla_decode_portable_bf16',
    tileRows: 16,
    tilesPerGroup: 4,
    workers: 216,
    minBlocks: 1,
    tileOverhead: 1,
    decodeGrid: [216, 1],
  })
})

test('every schedule covers its rows, keeps groups whole and has work memory for its workers', () => {
  const shapes = fc.record({
    batch: fc.integer({ min: 1, max: 300 }),
    sQ: fc.integer({ min: 1, max: 300 }),
    hQ: fc.integer({ min: 1, max: 256 }),
    pageSize: fc.constantFrom(1, 2, 16, 32, 48, 64, 128),
    expectedTokens: fc.option(fc.integer({ min: 0, max: 50_000 }), { nil: undefined }),
    expectedLongest: fc.integer({ min: 0, max: 2000 }),
  })
  const target = fc.constantFrom<KernelEntry['target']>('sm_90a', 'compute_80')
  fc.assert(
    fc.property(
      shapes,
      fc.boolean(),
      target,
      fc.integer({ min: 1, max: 200 }),
      (shape, ragged, to, multiprocessors) => {
        const { expectedTokens, ...known } = shape
        const expecting = expectedTokens === undefined ? known : { ...known, expectedTokens }
        const overrides = ragged ? { ...expecting, totalQueries: shape.batch * shape.sQ } : expecting
        const found = plan(overrides, to, { ...H100, multiprocessors })
        const rows = shape.sQ * shape.hQ
        const groupRows = Math.min(found.tileRows * found.tilesPerGroup, rows)
        const groups = shape.batch * Math.ceil(rows / (found.tileRows * found.tilesPerGroup))
        const groupWorkers = found.workers / found.tilesPerGroup
        expect(Number.isInteger(groupWorkers) && groupWorkers >= 1).toBe(true)
        // By tile only where every tile group that there may be has an entry of its own.
        expect(found.splitByTile).toBe(groups <= groupWorkers)
        expect(/_(merge|merge_paced|share)$/.test(found.symbol)).toBe(found.combine === undefined)
        if (found.symbol.endsWith('_share')) {
          expect(rows).toBeGreaterThan(32)
          const isLittle = shape.batch * Math.ceil(rows / 64) <= 2
          if (isLittle) expect(expectedTokens).toBeDefined()
          expect(found.workspace.partial_out).toBe(2 * found.workers * 64 * 512 * 2)
          expect(found.workspace.partial_lse).toBe(2 * found.workers * 64 * 8)
          expect(found.workspace.parts_ready).toBe(2 * found.workers * 4)
          return
        }
        if (!found.combine) {
          // No more than three or four parts a tile, were all of them equal, and fewer than five where they are alike.
          expect(found.tilesPerGroup).toBe(rows <= 32 ? 1 : Math.min(Math.ceil(rows / 64), 4))
          const alike =
            !ragged && rows > 32 && rows <= 64 && (expectedTokens ?? -1) * 1.25 >= shape.expectedLongest * shape.batch
          if (alike) expect(5 * groups).toBeGreaterThan(groupWorkers)
          else expect((rows <= 32 ? 4 : 3) * groups).toBeGreaterThanOrEqual(groupWorkers)
          const few = rows <= 32
          expect(found.symbol.endsWith('_paced')).toBe(!few && rows <= 64)
          expect(found.workspace.partial_out).toBe(found.workers * (few ? (rows <= 16 ? 7 : 11) : 18) * 256 * 16)
          expect(found.workspace.parts_ready).toBe(few ? 0 : found.workers * 4)
          expect(found.filled).toEqual(few ? { partial_out: 255 } : { parts_ready: 0 })
          return
        }
        const [entries, combineBlocks, z] = found.combine.grid
        const beside = { partial_lse: 2 * found.workers * found.tileRows * 8, splits: groupWorkers * SPLIT_BYTES }
        if (/_few(32)?$/.test(found.symbol)) {
          expect(found.groups).toBe(1)
          expect(found.combine.symbol).toContain(
            `mla_combine_few${found.tileRows === 16 ? '' : found.tileRows * found.tilesPerGroup}`,
          )
          // Beside each other only with parts enough, and without a word of the tokens only two.
          if (found.tilesPerGroup > 1) expect(groupWorkers).toBeGreaterThanOrEqual(4 * shape.batch)
          if (expectedTokens === undefined) expect(found.tilesPerGroup).toBeLessThanOrEqual(2)
          // What stands beside a decode block: two of them a multiprocessor, each a piece of a tile or of what there is.
          expect(entries * combineBlocks * z).toBeLessThanOrEqual(2 * multiprocessors)
          expect([1, 2, 4, 8, 16, 32, 64, 128]).toContain(combineBlocks)
          expect(entries).toBe(ragged ? 2 * multiprocessors : groups)
          expect(ragged ? shape.batch : 1).toBeLessThanOrEqual(128)
          expect(found.splitByTile).toBe(true)
          const part = (found.tileRows / 16) * 17408
          expect(found.workspace).toEqual({ ...beside, partial_out: 2 * found.workers * part, parts_ready: 0 })
          return
        }
        expect(entries).toBe(found.splitByTile ? groups : groupWorkers)
        // A block a row, or blocks that walk the rows: all of them at once, and never more than there are rows for.
        if (z === 2) expect(combineBlocks).toBe(groupRows)
        else expect(entries * combineBlocks).toBeLessThanOrEqual(Math.max(2 * multiprocessors, entries))
        expect(combineBlocks).toBeGreaterThanOrEqual(1)
        expect(combineBlocks).toBeLessThanOrEqual(groupRows)
        const bytes = found.combine.symbol.endsWith('_f16') ? 2 : 4
        expect(found.combine.symbol.includes('_rows')).toBe(to === 'sm_90a' && z === 1)
        expect(found.workspace).toEqual({
          ...beside,
          partial_out: 2 * found.workers * found.tileRows * 512 * bytes,
          parts_ready: 0,
        })
      },
    ),
  )
})
