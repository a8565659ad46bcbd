// The schedule that each block derives on the device (kernels/common/schedule.h), compiled for the host, against what it promises.
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { DeviceInfo } from '../driver/context'
import { type KernelEntry, readManifest } from '../kernels/library'
import { SPLIT_BYTES } from '../kernels/params'
import { hostProgram } from '../testing/host-program'
import { type DecodeSchedule, type DecodeShape, decodeSymbol, scheduleDecode } from './schedule'

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
  const device = { computeCapability: [9, 0], multiprocessors } as unknown as DeviceInfo
  const symbol = decodeSymbol(shape, target)
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
    hQ: fc.constantFrom(1, 9, 16, 63, 64, 128),
    ragged: fc.boolean(),
    target: fc.constantFrom<KernelEntry['target']>('sm_90a', 'compute_80'),
    // H100 SXM, H100 PCIe, A100, L4, a slice of a card, one alone
    multiprocessors: fc.constantFrom(132, 114, 108, 58, 16, 1),
    seed: fc.nat(),
  })
  .map(({ lengths, sQ, hQ, ragged, target, multiprocessors, seed }) => {
    const queries = lengths.map((_, i) => (ragged ? (seed + i * 7) % (sQ + 1) : sQ))
    const totalQueries = queries.reduce((sum, n) => sum + n, 0)
    const shape: DecodeShape = { dtype: 'bf16', batch: lengths.length, sQ, hQ, pageSize: 64 }
    return caseOf(ragged ? { ...shape, totalQueries } : shape, lengths, queries, target, multiprocessors)
  })

/** Segments of each case by tile group, `sequence,group`. */
function run(cases: readonly Case[]): Map<string, Segment[]>[] {
  const input = cases.map(({ shape, schedule, lengths, queries }) => {
    const { tileRows, tilesPerGroup, workers, minBlocks, tileOverhead, splitByTile, firstLead } = schedule
    const starts = shape.totalQueries === undefined ? [] : [0]
    if (starts.length > 0) for (const n of queries) starts.push(starts.at(-1)! + n)
    const head = [tileRows, tilesPerGroup, workers, minBlocks, tileOverhead, splitByTile ? 1 : 0, firstLead]
    return [...head, shape.hQ, shape.sQ, shape.batch, ...lengths, ...starts].join(' ')
  })
  const found = cases.map(() => new Map<string, Segment[]>())
  for (const line of program!(input)) {
    const [number, worker, seq, group, lo, hi, whole, index, count, closing, splits, firstWorker, entry] = line
      .split(' ')
      .map(Number)
    const segment = { worker, lo, hi, whole: whole === 1, index, count, closing, splits, firstWorker, entry } as Segment
    const segments = found[number!]!
    const key = `${seq},${group}`
    segments.set(key, [...(segments.get(key) ?? []), segment])
  }
  return found
}

function check({ shape, schedule, lengths, queries }: Case, found: ReadonlyMap<string, readonly Segment[]>): void {
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
}

describe.skipIf(!program)(
  program ? 'the device schedule' : 'the device schedule: needs Linux and a C++ compiler',
  () => {
    test('gives every block of every tile group to one worker, in equal shares, and mla_combine what it needs', () => {
      const cases = fc.sample(anyCase, { numRuns: 120, seed: 1 })
      for (const [i, found] of run(cases).entries()) check(cases[i]!, found)
    })

    test('lays out few tiles of equal length as whole pieces, many as whole tiles', () => {
      const of = (b: number, tokens: number, hQ: number) =>
        caseOf({ dtype: 'bf16', batch: b, sQ: 1, hQ, pageSize: 64 }, Array(b).fill(tokens), Array(b).fill(1), 'sm_90a')
      const cases = [of(8, 4096, 128), of(32, 4096, 16), of(4, 32_768, 16), of(128, 4096, 128), of(1, 64, 16)]
      const parts = run(cases).map((found) => new Set([...found.values()].map((segments) => segments.length)))
      expect(parts).toEqual([new Set([8]), new Set([4]), new Set([32]), new Set([1]), new Set([1])])
    })
  },
)
