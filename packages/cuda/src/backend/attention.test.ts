import { bf16Format, f32Format } from '@flashmla/latent'
import { DisposedError, InvalidArgumentError, UnsupportedError } from '@flashmla/spec'
import { expect, test } from 'vitest'
import { capacity, fakeBackend, field, source, step } from '../testing/fake-backend'
import { planAttention } from './attention'
import type { CudaBackend } from './backend'

function operands(backend: CudaBackend, t: number, h: number, format = f32Format(32, 16)) {
  const width = format.kvLoraRank + format.ropeDim
  return {
    out: backend.tensor('f32', [t, h, format.kvLoraRank]),
    lse: backend.tensor('f32', [t, h]),
    q: backend.tensor('f32', [t, h, width]),
    cache: backend.cache(format, 6, 4),
    batch: backend.batch(capacity),
  }
}

test('plans cut few tiles into parts, and many into none', () => {
  const h100 = { multiprocessors: 132, rank: 512 }
  expect(planAttention({ ...h100, t: 1, h: 8, mostQueries: 1, longest: 1000 }).grid).toEqual([1, 16, 1])
  expect(planAttention({ ...h100, t: 16, h: 128, mostQueries: 1, longest: 9000 })).toEqual({
    tileQueries: 1,
    grid: [128, 3, 1],
  })
  expect(planAttention({ ...h100, t: 512, h: 8, mostQueries: 512, longest: 512 })).toEqual({
    tileQueries: 2,
    grid: [256, 2, 1],
  })
  expect(planAttention({ ...h100, t: 600, h: 8, mostQueries: 600, longest: 600 }).grid).toEqual([300, 1, 1])
  expect(planAttention({ ...h100, rank: 1000, t: 9, h: 3, mostQueries: 9, longest: 0 })).toEqual({
    tileQueries: 5,
    grid: [2, 1, 2],
  })
})

test('attention passes the tables of the batch, and merges parts', async () => {
  const { backend, launched } = await fakeBackend()
  const { out, lse, q, cache, batch } = operands(backend, 3, 4)
  batch.update({ ...step, seqLens: Int32Array.of(8, 2) })
  const [attend, ...rest] = launched(() => backend.attention(out, lse, q, cache, batch, 0.5))
  expect(attend).toMatchObject({ symbol: 'mla_attend', grid: [1, 1, 1] })
  expect(rest).toEqual([])
  const names = [
    't',
    'h',
    'b',
    'page_size',
    'format',
    'tile_queries',
    'splits',
    'block_table_stride',
    'vector',
    'scale',
  ]
  expect(names.map((name) => field(attend!, name))).toEqual([3, 4, 4, 4, 0, 4, 1, 5, 1, 0.5])
  expect(attend!.sharedBytes).toBe(48 * 1024 + 16)
  const wide = operands(backend, 1, 2, bf16Format(512, 64))
  const long = backend.batch({ ...capacity, maxBlocks: 50 })
  long.update({
    queryStart: Int32Array.of(0, 1),
    seqLens: Int32Array.of(200),
    blockTable: new Int32Array(50),
    blockTableStride: 50,
  })
  const launches = launched(() => backend.attention(wide.out, wide.lse, wide.q, wide.cache, long, 1))
  expect(launches.map(({ symbol, grid }) => `${symbol} ${grid}`)).toEqual([
    'mla_attend 1,4,1',
    'mla_attend_merge 2,1,1',
  ])
  expect(launches[0]!.sharedBytes).toBe(2 * 16 * 580 * 4)
})

test('a step that leaves the cache is refused before anything is launched', async () => {
  const { backend, launched } = await fakeBackend()
  const { out, lse, q, cache, batch } = operands(backend, 3, 4)
  const attend = () => backend.attention(out, lse, q, cache, batch, 1)
  for (const [change, message] of [
    [{ blockTable: Int32Array.of(3, 6, 0, 0) }, /Sequence 0 names page 6 of a cache of 6/],
    [{ seqLens: Int32Array.of(9, 2) }, /Sequence 0 of 9 tokens has 2 block table entries for 3 pages/],
  ] as const) {
    batch.update({ ...step, ...change })
    expect(launched(() => expect(attend).toThrow(message))).toEqual([])
    expect(attend).toThrow(InvalidArgumentError)
  }
  batch.update(step)
  expect(launched(attend).length).toBe(1)
  expect(() => backend.batch({ ...capacity, maxBlocks: 0 })).toThrow(/maxBlocks is 0/)
  expect(() => backend.batch({ ...capacity, maxBlocks: 2 ** 30 })).toThrow(/4 by 1073741824 entries is too large/)
})

test('a row too wide for shared memory is unsupported', async () => {
  const { backend } = await fakeBackend()
  const { out, lse, q, cache, batch } = operands(backend, 1, 1, f32Format(2000, 8))
  batch.update({ ...step, queryStart: Int32Array.of(0, 1), seqLens: Int32Array.of(0), blockTableStride: 0 })
  expect(() => backend.attention(out, lse, q, cache, batch, 1)).toThrow(UnsupportedError)
})

test('update uploads what changed, and empties the sequences past the end', async () => {
  const { backend, api } = await fakeBackend()
  const batch = backend.batch(capacity)
  const uploads = (work: () => void) => {
    const before = api.called('cuMemcpyHtoDAsync_v2').length
    work()
    return api
      .called('cuMemcpyHtoDAsync_v2')
      .slice(before)
      .map(([, , bytes]) => bytes)
  }
  expect(uploads(() => batch.update(step))).toEqual([16, 8, 28])
  expect(uploads(() => batch.update(step))).toEqual([])
  expect(uploads(() => batch.update({ ...step, seqLens: Int32Array.of(8, 3) }))).toEqual([8])
  expect(uploads(() => batch.update({ ...step, queryStart: Int32Array.of(0, 1), seqLens: Int32Array.of(8) }))).toEqual([
    12, 4,
  ])
})

test('a captured step is planned, then recorded; what can’t be replayed is refused', async () => {
  const { backend, api, driver } = await fakeBackend()
  const { out, lse, q, cache, batch } = operands(backend, 3, 4)
  batch.update(step)
  let passes = 0
  const graph = backend.capture(() => {
    passes++
    backend.attention(out, lse, q, cache, batch, 1)
    backend.copyBlock(cache, 0, 1, 4)
  })
  expect(passes).toBe(2)
  expect(api.launches.map(({ symbol }) => symbol)).toEqual(['mla_attend'])
  expect(api.called('cuMemcpyDtoDAsync_v2').length).toBe(1)
  const order = api.calls.map(({ name }) => name)
  expect(order.lastIndexOf('cuMemAllocAsync')).toBeLessThan(order.indexOf('cuStreamBeginCapture_v2'))
  graph.replay()
  expect(api.called('cuGraphLaunch').length).toBe(1)
  const x = backend.tensor('f32', [1])
  for (const call of [
    () => backend.write(x, Float32Array.of(1)),
    () => backend.tensor('f32', [1]),
    () => backend.cache(f32Format(4, 4), 1, 1),
    () => batch.update(step),
    () => graph.replay(),
    () => backend.capture(() => {}),
  ]) {
    expect(() => backend.capture(call)).toThrow(/can't be part of a captured step/)
  }
  backend.write(x, Float32Array.of(1)) // the mode is back
  const later = backend.capture(() => backend.attention(out, lse, q, cache, batch, 1))
  lse.dispose()
  expect(() => later.replay()).toThrow(/which a captured graph uses/)
  graph.dispose()
  graph.dispose()
  expect(() => graph.replay()).toThrow(DisposedError)
  backend.dispose()
  expect(driver.live.size).toBe(0)
})

test('a step that leaves the cache of a captured one is refused, as long as that is there', async () => {
  for (const attention of ['exact', 'fast'] as const) {
    const { backend } = await fakeBackend({ attention })
    const { out, lse, q, cache, batch } = operands(backend, 3, 4, bf16Format(512, 64))
    batch.update(step)
    const graph = backend.capture(() => backend.attention(out, lse, q, cache, batch, 1))
    const far = { ...step, blockTable: Int32Array.of(3, 6, 0, 0) }
    expect(() => batch.update(far)).toThrow(/Sequence 0 names page 6 of a cache of 6/)
    expect(() => batch.update({ ...step, seqLens: Int32Array.of(9, 2) })).toThrow(/2 block table entries for 3 pages/)
    graph.replay()
    graph.dispose()
    batch.update(far)
  }
})

test('work memory of a captured step stays when a larger step needs more', async () => {
  const { backend, api } = await fakeBackend()
  const long = { ...capacity, maxBlocks: 100 }
  const tensors = { ...operands(backend, 1, 2), batch: backend.batch(long) }
  const attend = ({ out, lse, q, cache, batch }: typeof tensors) => backend.attention(out, lse, q, cache, batch, 1)
  const one = { queryStart: Int32Array.of(0, 1), blockTable: new Int32Array(100), blockTableStride: 100 }
  tensors.batch.update({ ...one, seqLens: Int32Array.of(100) })
  backend.capture(() => attend(tensors))
  const partial = field(api.launches.at(-1)!, 'partial_out') as bigint
  expect(api.device(partial).length).toBe(7 * 2 * 32 * 4)
  const more = { ...operands(backend, 1, 12), batch: tensors.batch }
  tensors.batch.update({ ...one, seqLens: Int32Array.of(400) })
  attend(more)
  expect(field(api.launches.at(-1)!, 'partial_out')).not.toBe(partial)
  expect(api.device(partial).length).toBe(7 * 2 * 32 * 4)
})

test('fast attention goes to the decode kernels for bf16-576 only, and holds a captured batch to its rows', async () => {
  const { backend, launched } = await fakeBackend({ attention: 'fast' })
  const narrow = operands(backend, 3, 4)
  narrow.batch.update(step)
  expect(
    launched(() => backend.attention(narrow.out, narrow.lse, narrow.q, narrow.cache, narrow.batch, 1))[0]!.symbol,
  ).toBe('mla_attend')
  const { out, lse, q, cache, batch } = operands(backend, 4, 16, bf16Format(512, 64))
  batch.update(step)
  const attend = () => backend.attention(out, lse, q, cache, batch, 1)
  const launches = launched(attend)
  expect(launches[0]).toMatchObject({ symbol: 'mla_cast', grid: [(3 * 16 * 576) / 1024, 1, 1] })
  expect(launches[1]!.symbol).toMatch(/^mla_decode_bf16/)
  batch.update({ ...step, queryStart: Int32Array.of(0, 4, 8) })
  backend.capture(() => {})
  batch.update(step)
  const graph = backend.capture(attend)
  batch.update({ ...step, queryStart: Int32Array.of(0, 2, 4) })
  const wider = () => batch.update({ ...step, queryStart: Int32Array.of(0, 3, 4) })
  expect(wider).toThrow(/planned for 2 at most/)
  let passes = 0
  const broken = () =>
    backend.capture(() => {
      attend()
      if (++passes === 2) throw new RangeError('mine')
    })
  expect(broken).toThrow(RangeError)
  graph.dispose()
  wider() // nothing holds it any more
})

test('naive attention takes runs of tokens, an empty sequence its zeros, and no capture', async () => {
  const { backend, launched } = await fakeBackend()
  const { cache, batch } = operands(backend, 3, 2)
  const [out, q] = [backend.tensor('f32', [3, 2, 8]), backend.tensor('f32', [3, 2, 24])]
  const kvB = await backend.weight(source([2 * 16, 32]))
  batch.update({ ...step, seqLens: Int32Array.of(7, 0) })
  const attend = () => backend.naiveAttention(out, q, kvB, cache, batch, 1)
  const launches = launched(attend)
  expect(launches.map(({ symbol, grid }) => `${symbol} ${grid}`)).toEqual([
    'mla_gather_latents 1,1,1',
    'mla_linear_few_8 2,1,1',
    'mla_attend_naive 2,1,1',
    'mla_attend_naive 4,1,1',
  ])
  const names = ['first_query', 'queries', 'seq_len', 'first', 'count', 'nope', 'v']
  expect(names.map((name) => field(launches[3]!, name))).toEqual([1, 2, 0, 0, 0, 8, 8])
  expect(() => backend.capture(attend)).toThrow(UnsupportedError)
})
