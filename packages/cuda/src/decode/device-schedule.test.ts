// The schedule that each block derives on the device (kernels/common/schedule.h), compiled for the host, against what it promises.
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { DeviceInfo } from '../driver/context'
import { type KernelEntry, readManifest } from '../kernels/library'
import { SPLIT_BYTES } from '../kernels/params'
import { hostProgram } from '../testing/host-program'
import { type DecodeSchedule, scheduleDecode } from './schedule'
import { type DecodeShape, decodeSymbol } from './shape'

const program = hostProgram('schedule')

interface Case {
  readonly shape: DecodeShape
  readonly schedule: DecodeSchedule
  readonly lengths: readonly number[]
  /** Query rows of each sequence. */
  readonly queries: readonly number[]
}

interface Segment {
  readonly worker: number
  readonly lo: number
  readonly hi: number
  readonly whole: boolean
  readonly index: number
  readonly count: number
  /** Of them, from the first on, those that have to be the last work of their workers. */
  readonly closing: number
  /** Of its blocks, the first ones, in which no query has a token masked. */
  readonly unmasked: number
  readonly splits: number
  readonly firstWorker: number
  readonly entry: number
}

const { kernels } = readManifest()

function caseOf(
  shape: DecodeShape,
  lengths: readonly number[],
  queries: readonly number[],
  target: KernelEntry['target'],
  multiprocessors = 132,
): Case {
  const device = { computeCapability: [9, 0], multiprocessors, memoryBytesPerSecond: 3.35e12 } as unknown as DeviceInfo
  const symbol = decodeSymbol(shape, target, multiprocessors)
  const entry = kernels.find((kernel) => kernel.symbol === symbol && kernel.target === target)!
  return { shape, schedule: scheduleDecode(shape, entry, device), lengths, queries }
}

const length = fc.oneof(fc.integer({ min: 0, max: 200 }), fc.integer({ min: 0, max: 20_000 }))
const lengthsOf = fc.oneof(
  fc.array(length, { minLength: 1, maxLength: 130 }),
  fc.tuple(length, fc.integer({ min: 1, max: 260 })).map(([of, b]) => Array<number>(b).fill(of)),
)
const anyCase = fc
  .record({
    lengths: lengthsOf,
    sQ: fc.integer({ min: 1, max: 5 }),
    hQ: fc.constantFrom(1, 9, 16, 48, 63, 64, 128),
    ragged: fc.boolean(),
    expects: fc.boolean(),
    target: fc.constantFrom<KernelEntry['target']>('sm_90a', 'compute_80'),
    // H100 SXM, H100 PCIe, A100, L4, a slice of a card, one alone
    multiprocessors: fc.constantFrom(132, 114, 108, 58, 16, 1),
    seed: fc.nat(),
  })
  .map(({ lengths, sQ, hQ, ragged, expects, target, multiprocessors, seed }) => {
    const queries = lengths.map((_, i) => (ragged ? (seed + i * 7) % (sQ + 1) : sQ))
    const totalQueries = queries.reduce((sum, n) => sum + n, 0)
    const expected = expects
      ? { expectedTokens: lengths.reduce((sum, n) => sum + n, 0), expectedLongest: Math.max(...lengths) }
      : {}
    const shape: DecodeShape = { dtype: 'bf16', batch: lengths.length, sQ, hQ, pageSize: 64, ...expected }
    return caseOf(ragged ? { ...shape, totalQueries } : shape, lengths, queries, target, multiprocessors)
  })

interface Found {
  /** Segments by tile group, `sequence,group`. */
  readonly segments: Map<string, Segment[]>
  /** Of each worker that has work: nanoseconds from one KV block that it asks for to the next. */
  readonly paces: number[]
}

/** What the device derives in each case. */
function run(cases: readonly Case[]): Found[] {
  const input = cases.map(({ shape, schedule, lengths, queries }) => {
    const { tileRows, tilesPerGroup, workers, minBlocks, tileOverhead, splitByTile, firstLead, blockPs } = schedule
    const starts = shape.totalQueries === undefined ? [] : [0]
    if (starts.length > 0) for (const n of queries) starts.push(starts.at(-1)! + n)
    const head = [tileRows, tilesPerGroup, workers, minBlocks, tileOverhead, splitByTile ? 1 : 0, firstLead, blockPs]
    return [...head, shape.hQ, shape.sQ, shape.batch, ...lengths, ...starts].join(' ')
  })
  const found = cases.map((): Found => ({ segments: new Map(), paces: [] }))
  for (const line of program!(input)) {
    const pace = /^pace (\d+) (\d+)$/.exec(line)
    if (pace) {
      found[Number(pace[1])]!.paces.push(Number(pace[2]))
      continue
    }
    const [number, worker, seq, group, lo, hi, whole, index, count, closing, unmasked, splits, firstWorker, entry] =
      line.split(' ').map(Number)
    const place = { worker, lo, hi, whole: whole === 1, index, count, closing, unmasked }
    const segment = { ...place, splits, firstWorker, entry } as Segment
    const { segments } = found[number!]!
    const key = `${seq},${group}`
    segments.set(key, [...(segments.get(key) ?? []), segment])
  }
  return found
}

function check({ shape, schedule, lengths, queries }: Case, { segments: found, paces }: Found): void {
  const { tileRows, tilesPerGroup, workers, minBlocks, tileOverhead, firstLead, workspace } = schedule
  const groupWorkers = workers / tilesPerGroup
  const blocksOf = lengths.map((tokens) => Math.ceil(tokens / 64))
  const groupsOf = queries.map((n) => Math.ceil((n * shape.hQ) / (tileRows * tilesPerGroup)))
  const shares = Array.from({ length: groupWorkers }, () => ({ blocks: 0, starts: 0, continues: 0, closed: false }))
  const entries = new Set<number>()
  let units = 0
  for (const [seq, groups] of groupsOf.entries()) {
    units += groups * (blocksOf[seq]! + tileOverhead)
    for (let group = 0; group < groups; group++) {
      const parts = found.get(`${seq},${group}`) ?? []
      // Every block once, in the order of the workers, who follow each other.
      expect(parts[0]).toMatchObject({ lo: 0, splits: parts.length, firstWorker: parts[0]!.worker })
      expect(parts.at(-1)!.hi).toBe(blocksOf[seq])
      expect(parts.every((part, i) => i === 0 || part.lo === parts[i - 1]!.hi)).toBe(true)
      expect(parts.every((part, i) => part.worker === parts[0]!.worker + i)).toBe(true)
      expect(parts.every((part) => part.whole === (parts.length === 1))).toBe(true)
      expect(parts.every((part, i) => part.index === i && part.count === parts.length)).toBe(true)
      for (const { lo, hi, unmasked } of parts) {
        const fewest = lengths[seq]! - queries[seq]! + 1 // tokens that the first query sees
        const blocks = Array.from({ length: hi - lo }, (_, i) => (lo + i + 1) * 64 <= fewest)
        expect(unmasked).toBe(blocks.filter(Boolean).length)
      }
      for (const { worker, lo, hi, whole, index, closing } of parts) {
        const share = shares[worker]!
        expect(share.closed).toBe(false)
        share.closed = !whole && index < closing
        share.blocks += hi - lo
        if (!whole && lo === 0) share.starts++
        if (!whole && lo > 0) share.continues++
      }
      // An entry of its own for all that mla_combine has to merge.
      if (parts.length === 1) continue
      expect(entries.has(parts[0]!.entry)).toBe(false)
      entries.add(parts[0]!.entry)
    }
  }
  const places = schedule.combine ? workspace.splits / SPLIT_BYTES : groupWorkers
  for (const entry of entries) expect(entry >= 0 && entry < places).toBe(true)
  expect(found.size).toBe(groupsOf.reduce((sum, n) => sum + n, 0))
  // A slot for a part that starts a tile and one for a part that continues one is what each worker has; of those it hands over one.
  expect(shares.every(({ starts, continues }) => starts <= 1 && continues <= 1)).toBe(true)
  const equal = Math.max(Math.ceil(units / groupWorkers), minBlocks)
  expect(Math.max(...shares.map(({ blocks }) => blocks))).toBeLessThanOrEqual(
    equal + Math.floor(equal / 16) + firstLead,
  )
  // At their pace workers ask for everything in the time that memory takes for it, and not much sooner. Whole pieces of equal tiles are rounded
  // up, and a plan of ragged queries doesn't know how many sequences have any.
  if (shape.totalQueries !== undefined || schedule.blockPs === 0) return
  const blocks = blocksOf.reduce((sum, n, i) => sum + n * groupsOf[i]!, 0)
  const memory = (blocks + (units - blocks) * Math.min(tileRows / 34 / tileOverhead, 1)) * schedule.blockPs * 1e-3
  const most = Math.max(...shares.map((share) => share.blocks))
  const pieces = new Set(blocksOf).size === 1 ? 1 + most / Math.max(blocksOf[0]!, 1) : 1
  if (most < 8) return
  for (const pace of paces) {
    expect(most * pace).toBeLessThanOrEqual(memory * 1.04 * pieces)
    expect(Math.max(equal, most) * (pace + 1)).toBeGreaterThanOrEqual(memory * 0.9)
  }
}

describe.skipIf(!program)(
  program ? 'the device schedule' : 'the device schedule: needs Linux and a C++ compiler',
  () => {
    test('gives every block of every tile group to one worker, in equal shares, and mla_combine what it needs', () => {
      const cases = fc.sample(anyCase, { numRuns: 120, seed: 1 })
      for (const [i, found] of run(cases).entries()) check(cases[i]!, found)
    })

    test('has workers ask for KV blocks at the pace with which the one that has most ends with memory', () => {
      const of = (lengths: number[], hQ: number) => {
        const shape = { dtype: 'bf16', batch: lengths.length, sQ: 1, hQ, pageSize: 64 } as const
        return caseOf(shape, lengths, Array(lengths.length).fill(1), 'sm_90a')
      }
      const uneven = Array.from({ length: 128 }, (_, i) => 64 * (30 + (i % 50)))
      const cases = [
        of(Array(128).fill(4096), 16),
        of(Array(128).fill(4096), 64),
        of(Array(32).fill(4096), 16),
        of(Array(100).fill(3000), 32),
        of(uneven, 16),
      ]
      const { blockPs } = cases[0]!.schedule
      // 128 workers of as many blocks each, thrice. Then 132 of 38 units at most, which start 100 tiles of 47 blocks and the bytes of 32 rows; then the same of 16.
      const blocks = uneven.reduce((sum, tokens) => sum + tokens / 64, 0)
      const chunk = Math.ceil((blocks + 128 * 2) / 132)
      const shares = [128, 128, 128, (100 * (47 + 32 / 34)) / 38, (blocks + (128 * 16) / 34) / chunk]
      for (const [i, { paces }] of run(cases).entries()) {
        const expected = (shares[i]! * blockPs) / 1000
        expect(Math.max(...paces.map((pace) => Math.abs(pace - expected)))).toBeLessThanOrEqual(1)
      }
    })

    test('lays out few tiles of equal length as whole pieces, many as whole tiles', () => {
      const of = (b: number, tokens: number, hQ: number) =>
        caseOf({ dtype: 'bf16', batch: b, sQ: 1, hQ, pageSize: 64 }, Array(b).fill(tokens), Array(b).fill(1), 'sm_90a')
      const cases = [of(8, 4096, 128), of(32, 4096, 16), of(4, 32_768, 16), of(128, 4096, 128), of(1, 64, 16)]
      const parts = run(cases).map(({ segments }) => new Set([...segments.values()].map((of) => of.length)))
      expect(parts).toEqual([new Set([8]), new Set([4]), new Set([32]), new Set([1]), new Set([1])])
    })

    test('gives a tile of 64 rows a piece for each worker that there is, shorter ones first', () => {
      // 2048 blocks for 66 groups of workers, 160 and 3 for 132 workers and five tiles; the last is too short for more than two pieces.
      const of = (b: number, tokens: number, hQ: number) =>
        caseOf({ dtype: 'bf16', batch: b, sQ: 1, hQ, pageSize: 64 }, Array(b).fill(tokens), Array(b).fill(1), 'sm_90a')
      const found = run([of(1, 131_072, 128), of(5, 160 * 64, 64), of(5, 3 * 64, 64)])
      const lengths = found.map(({ segments }) => [...segments.values()].map((of) => of.map(({ lo, hi }) => hi - lo)))
      expect(lengths[0]).toEqual([[...Array(64).fill(31), 32, 32]])
      expect(lengths[1]).toEqual(Array(5).fill([...Array(22).fill(6), ...Array(4).fill(7)]))
      expect(lengths[2]).toEqual(Array(5).fill([2, 1]))
    })

    test('gives the first of four parts two blocks more, which takes the others in', () => {
      const [b, tokens] = [32, 4096]
      const expected = { expectedTokens: b * tokens, expectedLongest: tokens }
      const shape = { dtype: 'bf16', batch: b, sQ: 1, hQ: 64, pageSize: 64, ...expected } as const
      const [found] = run([caseOf(shape, Array(b).fill(tokens), Array(b).fill(1), 'sm_90a')])
      for (const parts of found!.segments.values()) expect(parts.map(({ lo, hi }) => hi - lo)).toEqual([17, 15, 16, 16])
    })
  },
)
