import { bf16Format, f32Format, fp8V4Format } from '@flashmla/latent'
import { DisposedError, InvalidArgumentError, UnsupportedError } from '@flashmla/spec'
import { contractCases } from '@flashmla/testing'
import { describe, expect, it, test } from 'vitest'
import { Driver } from '../driver/driver'
import { CudaError, CudaUnavailableError } from '../errors'
import { fakeBackend, field, source } from '../testing/fake-backend'
import { H100 } from '../testing/fake-device'
import { FakeDriver } from '../testing/fake-driver'
import { createCudaBackend } from './create'

describe('what of the contract needs no kernels', async () => {
  const { backend, driver } = await fakeBackend()
  const names = /^errors: |^memory: (write and read keep|write at|shapes)|^weights: a source|^batch: .* is refused$/
  const cases = contractCases(() => backend).filter(({ name }) => names.test(name))
  it.each(cases.map(({ name, run }) => [name, run] as const))('%s', (_name, run) => run())
  it('leaves nothing behind', () => {
    backend.dispose()
    backend.dispose()
    expect(driver.live.size).toBe(0)
  })
})

test('the name tells the device, the weights and the attention', async () => {
  expect((await fakeBackend()).backend.name).toBe('cuda (NVIDIA H100 80GB HBM3)')
  const { backend } = await fakeBackend({ weights: 'bf16', attention: 'fast' })
  expect(backend.name).toBe('cuda (NVIDIA H100 80GB HBM3, bf16 weights, bf16 attention)')
  expect(backend.device.multiprocessors).toBe(132)
})

test('a machine or a device that cannot run it gets an error that lets a caller fall back', async () => {
  const none = new FakeDriver([])
  await expect(async () => createCudaBackend({ driver: new Driver({ api: none }) })).rejects.toThrow(
    CudaUnavailableError,
  )
  const old = new FakeDriver([{ ...H100, computeCapability: [7, 5] }])
  const driver = new Driver({ api: old })
  await expect(createCudaBackend({ driver })).rejects.toThrow(UnsupportedError)
  expect([driver.live.size, old.retained.get(0)]).toEqual([0, 0])
  await expect(createCudaBackend({ driver, weights: 'q8' as 'f32' })).rejects.toThrow(/weights is q8.*\nGive one of/)
})

test('a driver that refuses the compiled kernels lets a caller fall back too', async () => {
  const api = new FakeDriver([{ ...H100, computeCapability: [8, 0] }])
  const driver = new Driver({ api })
  api.failures.set('cuModuleLoadData', 222)
  await expect(createCudaBackend({ driver })).rejects.toThrow(UnsupportedError)
  await expect(createCudaBackend({ driver })).rejects.toThrow(/driver for CUDA 12\.4 can't load.*222.*\nUpdate/)
  api.failures.set('cuModuleLoadData', 2)
  await expect(createCudaBackend({ driver })).rejects.toThrow(CudaError)
  expect([driver.live.size, api.retained.get(0)]).toEqual([0, 0])
})

test('weights are kept as asked for, converted on the device', async () => {
  for (const [weights, dtype, bytes, converts] of [
    ['checkpoint', 'bf16', 48, 0],
    ['checkpoint', 'f16', 96, 1],
    ['f32', 'bf16', 96, 1],
    ['bf16', 'f32', 48, 1],
  ] as const) {
    const { backend, api } = await fakeBackend({ weights })
    const weight = await backend.weight(source([4, 6], dtype))
    expect(api.launches.map(({ symbol }) => symbol)).toEqual(new Array(converts).fill('mla_convert'))
    expect([...api.memory.values()].map(({ length }) => length)).toEqual([bytes])
    weight.dispose()
    weight.dispose()
    expect(api.memory.size).toBe(0)
  }
})

test('experts: a table made once, few pairs one by one, many sorted', async () => {
  const { backend, api, launched } = await fakeBackend()
  const matrix = () => backend.weight(source([8, 8]))
  const experts = [{ gate: await matrix(), up: await matrix(), down: await matrix() }]
  const run = (n: number) => {
    const [out, x] = [backend.tensor('f32', [n, 8]), backend.tensor('f32', [n, 8])]
    const [ids, weights] = [backend.tensor('i32', [n, 2]), backend.tensor('f32', [n, 2])]
    return launched(() => backend.experts(out, x, ids, weights, experts))
  }
  const few = run(2)
  expect(few.map(({ symbol, grid }) => [symbol, grid])).toEqual([
    ['mla_expert_up', [1, 4, 1]],
    ['mla_expert_down', [1, 2, 1]],
  ])
  const many = run(70)
  expect(many.map(({ symbol, grid }) => `${symbol} ${grid}`)).toEqual([
    'mla_expert_sort 1,1,1',
    'mla_expert_tiles 3,1,1',
    'mla_expert_tiles 3,1,1',
    'mla_silu_mul 2,1,1',
    'mla_expert_tiles 3,1,1',
    'mla_expert_sum 70,1,1',
  ])
  expect(many.filter(({ symbol }) => symbol.endsWith('tiles')).map((launch) => field(launch, 'stage'))).toEqual([
    0, 1, 2,
  ])
  const table = field(few[0]!, 'experts') as bigint
  expect(field(many[0]!, 'experts')).toBe(table)
  const view = new DataView(api.device(table).slice(0, 40).buffer)
  expect([view.getInt32(24, true), view.getInt32(28, true), view.getInt32(32, true)]).toEqual([2, 2, 2])
  experts[0]!.up.dispose()
  expect(() => run(2)).toThrow(DisposedError)
  experts[0]!.gate.dispose()
  expect(() => api.device(table)).toThrow(RangeError)
})

test('append names the format; copyBlock copies the stretches that it keeps together', async () => {
  const { backend, api, launched } = await fakeBackend()
  const cache = backend.cache(fp8V4Format, 6, 4)
  const [launch] = launched(() => backend.append(cache, backend.tensor('f32', [3, 512]), backend.tensor('i32', [3])))
  expect(launch).toMatchObject({ symbol: 'mla_append_rows', grid: [3, 1, 1] })
  const names = ['format', 'page_size', 'num_blocks', 'kv_lora_rank', 'rope_dim']
  expect(names.map((name) => field(launch!, name))).toEqual([3, 4, 6, 448, 64])
  const base = field(launch!, 'cache') as bigint
  backend.copyBlock(cache, 1, 4, 3)
  const page = 4n * 584n
  expect(api.called('cuMemcpyDtoDAsync_v2').map((args) => args.slice(0, 3))).toEqual([
    [base + 4n * page, base + page, 3 * 576],
    [base + 4n * page + 4n * 576n, base + page + 4n * 576n, 3 * 8],
  ])
  backend.copyBlock(cache, 2, 2, 4)
  expect(api.called('cuMemcpyDtoDAsync_v2').length).toBe(2)
  const odd = { ...bf16Format(512, 64), name: 'bf16-mine' }
  expect(() => backend.cache(odd, 1, 1)).toThrow(UnsupportedError)
})

test('operands of another backend are refused', async () => {
  const [{ backend }, { backend: other }] = [await fakeBackend(), await fakeBackend()]
  const [mine, theirs] = [backend.tensor('f32', [2]), other.tensor('f32', [2])]
  expect(() => backend.add(mine, theirs)).toThrow(InvalidArgumentError)
  const weight = await other.weight(source([2, 2]))
  expect(() => backend.linear(mine, mine, weight)).toThrow(/belongs to another backend/)
  const [cache, batch] = [
    other.cache(f32Format(4, 4), 1, 1),
    other.batch({ maxSequences: 1, maxTokens: 1, maxBlocks: 1 }),
  ]
  expect(() => backend.copyBlock(cache, 0, 0, 1)).toThrow(InvalidArgumentError)
  const q = backend.tensor('f32', [1, 1, 8])
  expect(() => backend.attention(q, q, q, backend.cache(f32Format(4, 4), 1, 1), batch, 1)).toThrow(InvalidArgumentError)
})

test('after dispose everything is a typed error, and resources may still be disposed of', async () => {
  const { backend, api } = await fakeBackend()
  const [x, cache] = [backend.tensor('f32', [2]), backend.cache(f32Format(4, 4), 1, 1)]
  const weight = await backend.weight(source([2, 2]))
  await backend.read(x)
  backend.dispose()
  for (const resource of [x, cache, weight]) resource.dispose()
  expect(() => backend.tensor('f32', [1])).toThrow(DisposedError)
  expect(() => backend.add(x, x)).toThrow(DisposedError)
  await expect(backend.read(x)).rejects.toThrow(DisposedError)
  await expect(backend.weight(source([1, 1]))).rejects.toThrow(DisposedError)
  expect([api.memory.size, api.hostMemory.size, api.handles.size, api.retained.get(0)]).toEqual([0, 0, 0, 0])
})
