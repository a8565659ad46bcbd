import { DisposedError, InvalidArgumentError, UnsupportedError } from '@flashmla/spec'
import { expect, test } from 'vitest'
import { CudaError, CudaUnavailableError } from '../errors'
import { H100 } from '../testing/fake-device'
import { FakeDriver } from '../testing/fake-driver'
import { bind, driverLibrary, openLibrary } from './api'
import { Context } from './context'
import { copy, download, fill, upload } from './copy'
import { Driver } from './driver'
import { Graph } from './graph'
import { Launch } from './launch'
import { DeviceMemory, PinnedMemory } from './memory'
import { Module } from './module'
import { Event, Stream } from './stream'
import { encodeTensorMap } from './tensor-map'

function setUp(api = new FakeDriver(), device = 0) {
  const context = new Context({ device, driver: new Driver({ api }) })
  return { api, context, stream: new Stream(context) }
}

test('a machine without a driver gets a typed error that says what is missing', () => {
  expect(() => openLibrary('darwin')).toThrow(/no NVIDIA driver for darwin/)
  const missing = () => openLibrary('linux', 'libno-such-driver.so.1')
  expect(missing).toThrow(CudaUnavailableError)
  expect(missing).toThrow(UnsupportedError)
  expect(missing).toThrow(/libno-such-driver\.so\.1 can't be loaded.*\n.*Install the NVIDIA driver/)
  const noKoffi = () => {
    throw new Error("Cannot find module 'koffi'")
  }
  expect(() => openLibrary('linux', 'libcuda.so.1', noKoffi)).toThrow(/koffi.*can't be loaded/)
  expect(driverLibrary('win32')).toBe('nvcuda.dll')
})

test('a driver that is too old, or sees no device, is unavailable', () => {
  const old = new FakeDriver()
  old.version = 11080
  expect(() => new Driver({ api: old })).toThrow(/supports CUDA 11\.8; 12\.0 is needed/)
  expect(() => new Driver({ api: new FakeDriver([]) })).toThrow(CudaUnavailableError)
  const noFabric = new FakeDriver()
  noFabric.failures.set('cuInit', 802)
  expect(() => new Driver({ api: noFabric })).toThrow(/did not start.*SYSTEM_NOT_READY.*\nStart the fabric manager/)
  const hidden = new FakeDriver([])
  const call = hidden.call.bind(hidden)
  hidden.call = (name, ...args) => (name === 'cuInit' ? 0 : call(name, ...args))
  expect(() => new Driver({ api: hidden })).toThrow(/found no device.*\n.*CUDA_VISIBLE_DEVICES/)
})

test.skipIf(process.platform !== 'linux')('a library that is no CUDA driver is told by what it lacks', () => {
  const opened = openLibrary('linux', 'libm.so.6')
  expect(() => bind(opened)).toThrow(CudaUnavailableError)
  expect(() => bind(opened)).toThrow(/libm\.so\.6 has no cuGetErrorName.*\nUpdate the NVIDIA driver/)
})

test('a failed call names itself, the status and the arguments, and leaves nothing held', () => {
  const { api, context, stream } = setUp()
  api.failures.set('cuMemAllocAsync', 2)
  const held = context.held.size
  let error: unknown
  try {
    new DeviceMemory(stream, 4096)
  } catch (caught) {
    error = caught
  }
  expect(error).toBeInstanceOf(CudaError)
  expect(error).toMatchObject({
    code: 'cuda',
    status: 2,
    statusName: 'CUDA_ERROR_OUT_OF_MEMORY',
    call: 'cuMemAllocAsync',
  })
  expect((error as Error).message).toMatch(/cuMemAllocAsync\(8 bytes, 4096, 0x[0-9a-f]+\).*\nFree device memory/)
  expect(context.held.size).toBe(held)
})

test('every device of the machine can be used, and its context is made current for its calls', () => {
  const api = new FakeDriver([H100, { ...H100, name: 'second', multiprocessors: 78 }])
  const driver = new Driver({ api })
  const first = new Context({ device: 0, driver })
  const second = new Context({ device: 1, driver })
  expect(second.device).toMatchObject({ ordinal: 1, name: 'second', multiprocessors: 78, computeCapability: [9, 0] })
  new Stream(first)
  new Stream(second)
  new Stream(second)
  const current = api.calls.filter(({ name }) => name === 'cuCtxSetCurrent').map(({ args }) => args[0])
  expect(current).toEqual([0xc0000n, 0xc0001n, 0xc0000n, 0xc0001n])
  expect(() => new Context({ device: 2, driver })).toThrow(/Device 2 does not exist; there are 2/)
})

test('resources are given back once, then refuse every use', () => {
  const { api, context, stream } = setUp()
  const memory = new DeviceMemory(stream, 64)
  const pinned = new PinnedMemory(context, 64)
  const event = new Event(context)
  expect(() => context[Symbol.dispose]()).toThrow(/still holds 4 resources/)
  expect(context.disposed).toBe(false)
  for (const resource of [memory, pinned, event, stream]) {
    resource[Symbol.dispose]()
    expect(() => resource[Symbol.dispose]()).toThrow(DisposedError)
  }
  expect(() => memory.address).toThrow(DisposedError)
  expect(() => pinned.write(new Uint8Array(1))).toThrow(DisposedError)
  expect(() => event.record(stream)).toThrow(DisposedError)
  expect(() => stream.synchronize()).toThrow(DisposedError)
  expect([api.memory.size, api.hostMemory.size, api.handles.size]).toEqual([0, 0, 0])
  context[Symbol.dispose]()
  expect(api.retained.get(0)).toBe(0)
  expect(() => context.synchronize()).toThrow(DisposedError)
})

test('memory may outlive its stream, which waits for its work first', () => {
  const { api, stream } = setUp()
  const memory = new DeviceMemory(stream, 64)
  stream[Symbol.dispose]()
  expect(api.calls.slice(-2).map(({ name }) => name)).toEqual(['cuStreamSynchronize', 'cuStreamDestroy_v2'])
  memory[Symbol.dispose]()
  expect(api.called('cuMemFreeAsync')[0]![1]).toBe(0n)
})

test('the leak report names what is left and where it was made', () => {
  const reports: string[] = []
  const before = process.listeners('exit')
  const driver = new Driver({ api: new FakeDriver(), debug: true, report: (text) => reports.push(text) })
  const hook = process.listeners('exit').find((listener) => !before.includes(listener)) as (code: number) => void
  process.removeListener('exit', hook)
  const context = new Context({ device: 0, driver })
  const stream = new Stream(context)
  new DeviceMemory(stream, 48)
  stream[Symbol.dispose]()
  hook(0)
  expect(reports).toHaveLength(1)
  expect(reports[0]).toMatch(/^2 CUDA resources were not disposed of/)
  expect(reports[0]).toMatch(/48 bytes of memory of device 0\n.*driver\.test\.ts/)
})

test('graphs move bytes and refuse ranges outside the memory', () => {
  const { context, stream } = setUp()
  const [a, b] = [new DeviceMemory(stream, 16), new DeviceMemory(stream, 16)]
  fill(stream, a, 7)
  upload(stream, a, Uint8Array.of(1, 2, 3), 4)
  copy(stream, b, a, { bytes: 8, sourceOffset: 2, targetOffset: 1 })
  const pinned = new PinnedMemory(context, 16)
  download(stream, b, pinned)
  const out = new Uint8Array(6)
  pinned.read(out, 1)
  expect([...out]).toEqual([7, 7, 1, 2, 3, 7])
  expect(() => upload(stream, a, new Uint8Array(9), 8)).toThrow(/Bytes 8 to 17 lie outside/)
  expect(() => download(stream, a, new Uint8Array(1), -1)).toThrow(InvalidArgumentError)
  expect(() => pinned.write(new Uint8Array(9), 8)).toThrow(InvalidArgumentError)
  for (const bytes of [0, 1.5, -1]) expect(() => new DeviceMemory(stream, bytes)).toThrow(InvalidArgumentError)
})

test('attributes are read of a living module only', () => {
  const { context } = setUp()
  const module = new Module(context, 'test.cubin', Uint8Array.of(1))
  const kernel = module.kernel('kernel')
  expect(kernel.attributes()).toEqual({ registers: 0, staticSharedBytes: 0 })
  module[Symbol.dispose]()
  expect(() => kernel.attributes()).toThrow(DisposedError)
})

test('`using` gives everything back in the right order', () => {
  const api = new FakeDriver()
  const driver = new Driver({ api })
  {
    using context = new Context({ device: 0, driver })
    using stream = new Stream(context)
    using memory = new DeviceMemory(stream, 64)
    using pinned = new PinnedMemory(context, 64)
    using event = new Event(context)
    using module = new Module(context, 'test.cubin', Uint8Array.of(1))
    using graph = new Graph(stream, () => fill(stream, memory, 0))
    upload(stream, memory, pinned)
    event.record(stream)
    graph.replay(stream)
    expect([driver.live.size, module.disposed]).toEqual([7, false])
  }
  expect([driver.live.size, api.memory.size, api.hostMemory.size, api.handles.size]).toEqual([0, 0, 0, 0])
  expect(api.retained.get(0)).toBe(0)
})

test('only pinned memory is copied in a capture; times need events with timing', () => {
  const { context, stream } = setUp()
  const [memory, pinned] = [new DeviceMemory(stream, 8), new PinnedMemory(context, 8)]
  for (const call of [
    () => upload(stream, memory, new Uint8Array(8)),
    () => download(stream, memory, new Uint8Array(8)),
  ]) {
    expect(() => new Graph(stream, call)).toThrow(/can't be captured.*\n.*PinnedMemory/)
    call() // outside of it, and the capture is over
  }
  new Graph(stream, () => upload(stream, memory, pinned))
  const [timed, plain] = [new Event(context, { timing: true }), new Event(context)]
  expect(timed.since(timed)).toBe(0)
  expect(() => timed.since(plain)).toThrow(/without timing has no time/)
})

test('a tensor map is encoded into 64-byte-aligned bytes with its dimensions as the driver wants them', () => {
  const { api, context } = setUp()
  const options = { dtype: 'bf16', address: 0x4000n, dims: [576, 12], strides: [1152], box: [64, 64] } as const
  const map = encodeTensorMap(context, options)
  expect(map.length).toBe(128)
  expect(api.address(map) % 64n).toBe(0n)
  const [, dtype, rank, address, dims, strides, box, elementStrides, ...modes] =
    api.called('cuTensorMapEncodeTiled')[0]!
  expect([dtype, rank, address, modes]).toEqual([9, 2, 0x4000n, [0, 3, 3, 0]])
  expect([...new BigUint64Array((dims as Uint8Array).buffer)]).toEqual([576n, 12n])
  expect([...new BigUint64Array((strides as Uint8Array).buffer)]).toEqual([1152n])
  expect([...new Uint32Array((box as Uint8Array).buffer)]).toEqual([64, 64])
  expect([...new Uint32Array((elementStrides as Uint8Array).buffer)]).toEqual([1, 1])
})

test('a graph is captured, replayed, updated and freed; what capture throws comes through', () => {
  const { api, stream } = setUp()
  const graph = new Graph(stream, () => {})
  graph.replay(stream)
  graph.update(stream, () => {})
  expect(api.called('cuGraphLaunch')).toHaveLength(1)
  expect([...api.handles.values()].sort()).toEqual(['exec', 'stream'])
  api.failures.set('cuGraphExecUpdate_v2', 910)
  expect(() => graph.update(stream, () => {})).toThrow(UnsupportedError)
  const work = () => {
    throw new RangeError('mine')
  }
  expect(() => new Graph(stream, work)).toThrow(RangeError)
  graph[Symbol.dispose]()
  expect(() => graph.replay(stream)).toThrow(DisposedError)
  expect([...api.handles.values()]).toEqual(['stream'])
})

test('a graph is not replayed once memory that it names is gone; an update names other memory', () => {
  const { api, stream } = setUp()
  const [memory, other] = [new DeviceMemory(stream, 64), new DeviceMemory(stream, 32)]
  const part = () => new DeviceMemory(stream, 8, { of: memory, offset: 8 })
  const graph = new Graph(stream, () => fill(stream, part(), 0))
  const unwatched = new Graph(stream, () => fill(stream, memory, 0), { watch: false })
  graph.replay(stream)
  memory[Symbol.dispose]()
  expect(() => graph.replay(stream)).toThrow(
    /^64 bytes of memory of device 0, which a captured graph uses, was used after/,
  )
  unwatched.replay(stream)
  graph.update(stream, () => fill(stream, other, 0))
  graph.replay(stream)
  expect(api.called('cuGraphLaunch')).toHaveLength(3)
  graph[Symbol.dispose]()
  other[Symbol.dispose]()
})

test('a graph is not replayed once its pinned memory, or the module of a kernel, is gone', () => {
  const { api, context, stream } = setUp()
  const [memory, pinned] = [new DeviceMemory(stream, 8), new PinnedMemory(context, 8)]
  const module = new Module(context, 'adds', new Uint8Array(8))
  const launch = new Launch({ kernel: module.kernel('add'), grid: [1, 1], threads: 32, parameters: [] })
  const graphs = [
    () => upload(stream, memory, pinned),
    () => download(stream, memory, pinned),
    () => launch.on(stream),
  ].map((work) => new Graph(stream, work))
  for (const graph of graphs) graph.replay(stream)
  for (const gone of [pinned, module]) gone[Symbol.dispose]()
  for (const graph of graphs) expect(() => graph.replay(stream)).toThrow(/which a captured graph uses, was used after/)
  expect(api.called('cuGraphLaunch')).toHaveLength(3)
})

test('waiting leaves the event loop free and reports failed work', async () => {
  const { api, stream } = setUp()
  api.failures.set('cuStreamQuery', 600)
  let done = false
  const finished = stream.finished().then(() => {
    done = true
  })
  await new Promise((resolve) => setTimeout(resolve, 5))
  expect(done).toBe(false)
  api.failures.delete('cuStreamQuery')
  await finished
  api.failures.set('cuStreamQuery', 1)
  await expect(stream.finished()).rejects.toThrow(CudaError)
})
