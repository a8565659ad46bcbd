// What is left when something fails or is disposed of at the wrong moment.
import { bf16Format } from '@flashmla/latent'
import { InvalidArgumentError } from '@flashmla/spec'
import { expect, test } from 'vitest'
import { Driver } from '../driver/driver'
import { CudaError } from '../errors'
import { EXPERT_BYTES } from '../kernels/model-params'
import { fakeBackend, field, source } from '../testing/fake-backend'
import { FakeDriver } from '../testing/fake-driver'
import { createCudaBackend } from './create'

/** Lets the nth allocation from now on run out of memory. */
function failAllocation(api: FakeDriver, nth: number): void {
  const call = FakeDriver.prototype.call.bind(api)
  let allocations = 0
  api.call = (name, ...args) => (name === 'cuMemAllocAsync' && ++allocations === nth ? 2 : call(name, ...args))
}

test('a backend that can not be made leaves nothing, and tells the first error', async () => {
  const api = new FakeDriver()
  const driver = new Driver({ api })
  api.failures.set('cuStreamCreate', 2)
  await expect(createCudaBackend({ driver })).rejects.toThrow(/cuStreamCreate\(.*OUT_OF_MEMORY/)
  expect([driver.live.size, api.retained.get(0)]).toEqual([0, 0])
})

test('a batch or a converted weight that does not fit gives back what it had', async () => {
  const { backend, api } = await fakeBackend()
  const before = api.memory.size
  for (const nth of [1, 2, 3]) {
    failAllocation(api, nth)
    expect(() => backend.batch({ maxSequences: 2, maxTokens: 4, maxBlocks: 3 })).toThrow(CudaError)
    expect(api.memory.size).toBe(before)
  }
  for (const nth of [1, 2]) {
    failAllocation(api, nth)
    await expect(backend.weight(source([4, 4], 'f16'))).rejects.toThrow(CudaError)
    expect(api.memory.size).toBe(before)
  }
})

test('the table of experts follows the matrices, whatever array they come in', async () => {
  const { backend, api, launched } = await fakeBackend()
  const matrix = () => backend.weight(source([8, 8]))
  const expert = async () => ({ gate: await matrix(), up: await matrix(), down: await matrix() })
  const [first, other, third] = [await expert(), await expert(), await expert()]
  const [out, x] = [backend.tensor('f32', [1, 8]), backend.tensor('f32', [1, 8])]
  const [ids, weights] = [backend.tensor('i32', [1, 1]), backend.tensor('f32', [1, 1])]
  const tableOf = (experts: (typeof first)[]) =>
    field(launched(() => backend.experts(out, x, ids, weights, experts))[0]!, 'experts') as bigint
  const experts = [first, other]
  const table = tableOf(experts)
  const memories = api.memory.size
  expect([tableOf([first, other]), api.memory.size]).toEqual([table, memories])
  experts[1] = third
  const changed = tableOf(experts)
  expect(changed).not.toBe(table)
  const bytes = new DataView(api.device(changed).slice().buffer)
  expect(bytes.getBigUint64(EXPERT_BYTES, true)).toBe((third.gate as unknown as { address: bigint }).address)
  first.gate.dispose()
  for (const gone of [table, changed]) expect(() => api.device(gone)).toThrow(RangeError)
})

test('nothing is disposed of within a capture, and all of it afterwards', async () => {
  const { backend, api } = await fakeBackend()
  const [x, y] = [backend.tensor('f32', [4]), backend.tensor('f32', [4])]
  const cache = backend.cache(bf16Format(8, 4), 1, 1)
  const batch = backend.batch({ maxSequences: 1, maxTokens: 1, maxBlocks: 1 })
  const weight = await backend.weight(source([2, 2]))
  const graph = backend.capture(() => backend.add(x, y))
  const memories = api.memory.size
  for (const resource of [x, cache, batch, weight, graph]) {
    expect(() => backend.capture(() => resource.dispose())).toThrow(InvalidArgumentError)
  }
  expect(api.memory.size).toBe(memories)
  graph.replay()
  for (const resource of [graph, x, y, cache, batch, weight]) resource.dispose()
  expect(api.memory.size).toBe(0)
})

test('a record that needs more the second time is refused', async () => {
  const { backend } = await fakeBackend()
  const weight = await backend.weight(source([8, 8]))
  const experts = () => [{ gate: weight, up: weight, down: weight }]
  const [out, x] = [backend.tensor('f32', [9, 8]), backend.tensor('f32', [9, 8])]
  const [ids, weights] = [backend.tensor('i32', [9, 1]), backend.tensor('f32', [9, 1])]
  let passes = 0
  const record = () => ++passes === 2 && backend.experts(out, x, ids, weights, experts())
  expect(() => backend.capture(record)).toThrow(/needs memory that its first pass did not/)
  backend.capture(() => backend.experts(out, x, ids, weights, experts())).replay()
})

test('after work that failed the backend can still be disposed of, and the error names the kernels', async () => {
  const { backend, api, driver } = await fakeBackend()
  const x = backend.tensor('f32', [4])
  backend.add(x, x)
  api.failures.set('cuStreamSynchronize', 700)
  api.failures.set('cuMemFreeAsync', 700)
  expect(() => backend.dispose()).toThrow(/ILLEGAL_ADDRESS.*Queued before it: mla_add/)
  backend.dispose()
  expect(driver.live.size).toBe(0)
})

test('a captured step is not replayed once a weight that it uses is gone', async () => {
  const { backend } = await fakeBackend()
  const matrix = () => backend.weight(source([8, 8]))
  const [weight, gate, up, down] = [await matrix(), await matrix(), await matrix(), await matrix()]
  const [out, x] = [backend.tensor('f32', [1, 8]), backend.tensor('f32', [1, 8])]
  const [ids, weights] = [backend.tensor('i32', [1, 1]), backend.tensor('f32', [1, 1])]
  const product = backend.capture(() => backend.linear(out, x, weight))
  const mixture = backend.capture(() => backend.experts(out, x, ids, weights, [{ gate, up, down }]))
  for (const graph of [product, mixture]) graph.replay()
  for (const gone of [weight, down]) gone.dispose()
  for (const graph of [product, mixture]) expect(() => graph.replay()).toThrow(/which a captured graph uses/)
})
