import { bf16Format } from '@flashmla/latent'
import { DisposedError, InvalidArgumentError } from '@flashmla/spec'
import { expect, test } from 'vitest'
import { capacity, fakeBackend, field, step } from '../testing/fake-backend'
import type { CudaBackend } from './backend'

function operands(backend: CudaBackend, t: number, maxBlocks = 5) {
  return {
    out: backend.tensor('f32', [t, 16, 512]),
    lse: backend.tensor('f32', [t, 16]),
    q: backend.tensor('f32', [t, 16, 576]),
    cache: backend.cache(bf16Format(512, 64), 6, 4),
    batch: backend.batch({ ...capacity, maxBlocks }),
  }
}

function attendOn(backend: CudaBackend, { out, lse, q, cache, batch }: ReturnType<typeof operands>): void {
  backend.attention(out, lse, q, cache, batch, 1)
}

test('operands at the addresses of disposed ones are those that are used', async () => {
  const { api, backend, launched } = await fakeBackend({ attention: 'fast' })
  api.reusesMemory = true
  /** A step over operands of its own; how often a graph was replayed. */
  const attend = (maxBlocks?: number) => {
    const before = api.called('cuGraphLaunch').length
    const mine = operands(backend, 3, maxBlocks)
    mine.batch.update(step)
    for (let layer = 0; layer < 4; layer++) attendOn(backend, mine)
    for (const resource of Object.values(mine)) resource.dispose()
    return api.called('cuGraphLaunch').length - before
  }
  expect([attend(), attend(), attend()]).toEqual([0, 1, 1])
  // Other rows of the block table are other work.
  expect(launched(() => expect(attend(8)).toBe(0)).map(({ symbol }) => symbol)).toContain('mla_decode_bf16_gather')
})

test('sequences with as many rows each are planned as such, others and captured steps as ragged', async () => {
  const { backend, launched } = await fakeBackend({ attention: 'fast' })
  const mine = operands(backend, 4)
  const planned = (work = () => attendOn(backend, mine)) => {
    const decode = launched(work).find(({ symbol }) => symbol.startsWith('mla_decode'))!
    return { batch: field(decode, 'batch'), ragged: field(decode, 'query_start') !== 0n }
  }
  mine.batch.update(step)
  expect(planned()).toEqual({ batch: capacity.maxSequences, ragged: true })
  mine.batch.update({ ...step, queryStart: Int32Array.of(0, 2, 4) })
  expect(planned()).toEqual({ batch: 2, ragged: false })
  const capturing = () => backend.capture(() => attendOn(backend, mine))
  expect(planned(capturing)).toEqual({ batch: capacity.maxSequences, ragged: true })
})

test('few tokens are planned for as such, and so again when there are few again', async () => {
  const { api, backend, launched } = await fakeBackend({ attention: 'fast' })
  const maxBlocks = 200
  const q = backend.tensor('f32', [1, 128, 576])
  const [out, lse] = [backend.tensor('f32', [1, 128, 512]), backend.tensor('f32', [1, 128])]
  const cache = backend.cache(bf16Format(512, 64), maxBlocks, 64)
  const batch = backend.batch({ maxSequences: 1, maxTokens: 1, maxBlocks })
  const symbolFor = (tokens: number) => {
    const [queryStart, seqLens] = [Int32Array.of(0, 1), Int32Array.of(tokens)]
    batch.update({ queryStart, seqLens, blockTable: new Int32Array(maxBlocks), blockTableStride: maxBlocks })
    const found = launched(() => attendOn(backend, { out, lse, q, cache, batch }))
    return found.find(({ symbol }) => symbol.startsWith('mla_decode'))!.symbol
  }
  const [small, wider, large] = ['_few', '_few32', '_share'].map((form) => `mla_decode_bf16${form}`)
  expect([8192, 8448, 9000, 12_800].map(symbolFor)).toEqual([small, wider, large, large])
  const allocated = api.called('cuMemAllocAsync').length
  expect([12_500, 9001, 8400, 5].map(symbolFor)).toEqual([large, large, wider, small])
  expect(allocated).toBeGreaterThan(0)
  expect(api.called('cuMemAllocAsync').length).toBe(allocated)
})

test('whether lengths are alike is planned for, each step anew', async () => {
  const { backend, launched } = await fakeBackend({ attention: 'fast' })
  const [b, maxBlocks] = [33, 4]
  const q = backend.tensor('f32', [b, 64, 576])
  const [out, lse] = [backend.tensor('f32', [b, 64, 512]), backend.tensor('f32', [b, 64])]
  const cache = backend.cache(bf16Format(512, 64), maxBlocks, 64)
  const batch = backend.batch({ maxSequences: b, maxTokens: b, maxBlocks })
  const symbolFor = (longest: number) => {
    const [queryStart, seqLens] = [Int32Array.from({ length: b + 1 }, (_, s) => s), new Int32Array(b).fill(100)]
    seqLens[7] = longest
    batch.update({ queryStart, seqLens, blockTable: new Int32Array(b * maxBlocks), blockTableStride: maxBlocks })
    const found = launched(() => attendOn(backend, { out, lse, q, cache, batch }))
    return found.find(({ symbol }) => symbol.startsWith('mla_decode'))!.symbol
  }
  const [alike, unlike] = ['mla_decode_bf16_merge_paced', 'mla_decode_bf16_share']
  expect([100, 125, 127, 200, 101].map(symbolFor)).toEqual([alike, alike, unlike, unlike, alike])
})

test('a capture loads its kernels before it records', async () => {
  const { api, backend } = await fakeBackend({ attention: 'fast' })
  const mine = operands(backend, 3)
  mine.batch.update(step)
  backend.capture(() => attendOn(backend, mine))
  const order = api.calls.map(({ name }) => name)
  for (const load of ['cuModuleLoadData', 'cuModuleGetFunction'] as const)
    expect(order.lastIndexOf(load)).toBeLessThan(order.indexOf('cuStreamBeginCapture_v2'))
})

test('a plan that only the second pass of a capture asks for is refused', async () => {
  const { backend } = await fakeBackend({ attention: 'fast' })
  const [mine, larger] = [operands(backend, 3), operands(backend, 8)]
  for (const { batch } of [mine, larger]) batch.update(step)
  larger.batch.update({ ...step, queryStart: Int32Array.of(0, 4, 8) })
  attendOn(backend, larger)
  let passes = 0
  const record = () => ++passes === 2 && attendOn(backend, mine)
  expect(() => backend.capture(record)).toThrow(/needs memory that its first pass did not/)
  backend.capture(() => attendOn(backend, mine)).replay()
})

test('a captured batch takes no step that the recorded launches would leave their operands for', async () => {
  const { backend } = await fakeBackend({ attention: 'fast' })
  const mine = operands(backend, 3)
  mine.batch.update(step)
  const graph = backend.capture(() => attendOn(backend, mine))
  const wider = () => mine.batch.update({ ...step, queryStart: Int32Array.of(0, 2, 4) })
  expect(wider).toThrow(InvalidArgumentError)
  expect(wider).toThrow(/4 query rows; the captured step was planned for 3 at most/)
  graph.dispose()
  wider()
  const none = operands(backend, 3)
  none.batch.update({ ...step, queryStart: Int32Array.of(0, 0, 0) })
  backend.capture(() => attendOn(backend, none))
  expect(() => none.batch.update(step)).toThrow(/2 query rows; the captured step was planned for 0 at most/)
})

test('views that are not aligned for the decode kernels are attended to exactly', async () => {
  const { backend, launched } = await fakeBackend({ attention: 'fast' })
  const mine = operands(backend, 3)
  mine.batch.update(step)
  const symbols = (change: Partial<typeof mine>) =>
    launched(() => attendOn(backend, { ...mine, ...change })).map(({ symbol }) => symbol)
  const q = (offset: number) => backend.view(backend.tensor('f32', [4, 16, 576]), [3, 16, 576], offset)
  const out = (offset: number) => backend.view(backend.tensor('f32', [4, 16, 512]), [3, 16, 512], offset)
  expect([symbols({ q: q(4) })[0], symbols({ out: out(4) })[0]]).toEqual(['mla_cast', 'mla_cast'])
  expect([symbols({ q: q(1) })[0], symbols({ out: out(2) })[0]]).toEqual(['mla_attend', 'mla_attend'])
})

test('a view may go while what it is used for is held back', async () => {
  const { api, backend } = await fakeBackend({ attention: 'fast' })
  const mine = operands(backend, 3)
  const whole = backend.tensor('f32', [4, 16, 576])
  mine.batch.update(step)
  for (let round = 0; round < 3; round++) {
    const q = backend.view(whole, [3, 16, 576], 576)
    for (let layer = 0; layer < 4; layer++) attendOn(backend, { ...mine, q })
    q.dispose()
    await backend.read(mine.lse)
  }
  expect(api.called('cuGraphLaunch').length).toBe(2)
})

test('a step of no rows in the middle of a tensor launches nothing', async () => {
  const { backend, launched } = await fakeBackend({ attention: 'fast' })
  const mine = operands(backend, 3)
  mine.batch.update({ ...step, queryStart: Int32Array.of(0, 0, 0) })
  const views = {
    q: backend.view(mine.q, [0, 16, 576], 576),
    out: backend.view(mine.out, [0, 16, 512], 512),
    lse: backend.view(mine.lse, [0, 16], 16),
  }
  expect(launched(() => attendOn(backend, { ...mine, ...views }))).toEqual([])
  mine.q.dispose()
  expect(() => attendOn(backend, { ...mine, ...views })).toThrow(DisposedError)
})
