import { DisposedError, InvalidArgumentError } from '@flashmla/spec'
import { expect, test } from 'vitest'
import { Context } from '../driver/context'
import { Driver } from '../driver/driver'
import type { DeviceMemory } from '../driver/memory'
import { Stream } from '../driver/stream'
import { FakeDriver } from '../testing/fake-driver'
import { DecodeTables, type TableCapacity } from './tables'

const capacity: TableCapacity = { batch: 3, maxBlocks: 4, numBlocks: 10, pageSize: 64, sQ: 2 }

function setUp(overrides: Partial<TableCapacity> = {}) {
  const api = new FakeDriver()
  const context = new Context({ device: 0, driver: new Driver({ api }) })
  const stream = new Stream(context)
  const make = () => new DecodeTables(stream, { ...capacity, ...overrides })
  const ints = (memory: DeviceMemory) => [...new Int32Array(api.device(memory.address).slice().buffer)]
  return { api, context, make, ints }
}

const step = {
  seqLens: Int32Array.of(70, 0),
  blockTable: Int32Array.of(3, 4, 0x7fff_ffff, 0x7fff_ffff),
  blockTableStride: 2,
}

test('a step is padded to the tables in place; what is not read is not checked', () => {
  const { make, ints } = setUp()
  const tables = make()
  const { seqLens, blockTable } = tables
  expect([ints(seqLens), tables.queryStart]).toEqual([[0, 0, 0], undefined])
  tables.update({ ...step, seqLens: Int32Array.of(1, 1, 1), blockTable: Int32Array.of(7, 8, 9), blockTableStride: 1 })
  tables.update(step)
  expect(tables.seqLens).toBe(seqLens)
  expect(ints(seqLens)).toEqual([70, 0, 0])
  expect(ints(blockTable).slice(0, 2)).toEqual([3, 4])
  expect(tables.blockTableStride).toBe(4)
})

test('a wider block table is cut to the pages that the tables have', () => {
  const { make, ints } = setUp()
  const tables = make()
  const wide = Int32Array.from({ length: 12 }, (_, i) => i % 10)
  tables.update({ seqLens: Int32Array.of(256, 256), blockTable: wide, blockTableStride: 6 })
  expect(ints(tables.blockTable).slice(0, 8)).toEqual([0, 1, 2, 3, 6, 7, 8, 9])
})

test('sequences past the end of a ragged step have no queries', () => {
  const { make, ints } = setUp({ totalQueries: 4 })
  const tables = make()
  tables.update({ ...step, queryStart: Int32Array.of(0, 2, 3) })
  expect(ints(tables.queryStart!)).toEqual([0, 2, 3, 3])
})

test.each([
  ['no sequence', { seqLens: new Int32Array(0) }, /0 sequences/],
  ['too many sequences', { seqLens: new Int32Array(4), blockTableStride: 0 }, /4 sequences doesn't fit tables of 3/],
  ['a short table', { blockTable: new Int32Array(3) }, /3 entries has no 2 rows of 2/],
  ['a length below 0', { seqLens: Int32Array.of(70, -1) }, /Sequence 1 has -1 tokens/],
  ['a length past its row', { seqLens: Int32Array.of(129, 0) }, /Sequence 0 has 129 tokens, and its table row 2 pages/],
  [
    'a block past the cache',
    { blockTable: Int32Array.of(3, 10, 0, 0) },
    /Page 1 of sequence 0 is block 10 of a cache of 10/,
  ],
  ['a block below 0', { blockTable: Int32Array.of(-1, 4, 0, 0) }, /is block -1/],
  [
    'query starts without need',
    { queryStart: Int32Array.of(0, 1, 2) },
    /queryStart is given, the tables are not ragged/,
  ],
])('%s is refused, and the step before it stays', (_, change, message) => {
  const { api, make, ints } = setUp()
  const tables = make()
  tables.update(step)
  const uploads = api.called('cuMemcpyHtoDAsync_v2').length
  expect(() => tables.update({ ...step, ...change })).toThrow(message)
  expect(() => tables.update({ ...step, ...change })).toThrow(InvalidArgumentError)
  expect(api.called('cuMemcpyHtoDAsync_v2').length).toBe(uploads)
  expect(ints(tables.seqLens)).toEqual([70, 0, 0])
})

test.each([
  [undefined, /queryStart is missing, the tables are ragged/],
  [Int32Array.of(0, 1), /2 entries from 0 to 1/],
  [Int32Array.of(1, 2, 3), /3 entries from 1/],
  [Int32Array.of(0, 2, 5), /from 0 to 5/],
  [Int32Array.of(0, 3, 4), /Sequence 0 has 3 query rows/],
  [Int32Array.of(0, 2, 1), /Sequence 1 has -1 query rows/],
])('query starts %s are refused', (queryStart, message) => {
  const tables = setUp({ totalQueries: 4 }).make()
  expect(() => tables.update({ ...step, queryStart } as never)).toThrow(message)
})

test('the memory is freed once, also when only some of it could be had', () => {
  const { api, context, make } = setUp({ totalQueries: 4 })
  const held = context.held.size
  const tables = make()
  tables[Symbol.dispose]()
  expect(() => tables.seqLens).toThrow(DisposedError)
  expect(() => tables[Symbol.dispose]()).toThrow(DisposedError)
  const call = api.call.bind(api)
  let allocations = 0
  api.call = (name, ...args) => (name === 'cuMemAllocAsync' && ++allocations === 3 ? 2 : call(name, ...args))
  expect(make).toThrow(/CUDA_ERROR_OUT_OF_MEMORY/)
  expect([api.memory.size, context.held.size]).toEqual([0, held])
  expect(() => setUp({ maxBlocks: 0 }).make()).toThrow('maxBlocks is 0')
  expect(() => setUp({ maxBlocks: 2 ** 30 }).make()).toThrow(/block table of 3 by 1073741824 entries is too large/)
  expect(() => setUp({ totalQueries: Number.NaN }).make()).toThrow('totalQueries is NaN')
})
