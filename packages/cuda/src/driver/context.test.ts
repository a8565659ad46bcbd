import { InvalidArgumentError, UnsupportedError } from '@flashmla/spec'
import { expect, test } from 'vitest'
import { decode, planDecode } from '../decode/decode'
import { KernelLibrary } from '../kernels/library'
import { H100 } from '../testing/fake-device'
import { FakeDriver } from '../testing/fake-driver'
import { Context } from './context'
import { copy, download, fill, upload } from './copy'
import { Driver } from './driver'
import { Graph } from './graph'
import { Launch } from './launch'
import { DeviceMemory, PinnedMemory } from './memory'
import { Module } from './module'
import { Event, Stream } from './stream'

const second = { ...H100, name: 'second', multiprocessors: 78 }

/** Everything of one device. Each has a Driver of its own, as `new Context({ device })` makes it. */
function open(api: FakeDriver, device: number) {
  const context = new Context({ device, driver: new Driver({ api }) })
  const stream = new Stream(context)
  const kernel = new Module(context, 'test.cubin', Uint8Array.of(1)).kernel('kernel')
  return {
    context,
    stream,
    launch: new Launch({ kernel, grid: [1, 1], threads: 32, parameters: [] }),
    memory: new DeviceMemory(stream, 64),
    pinned: new PinnedMemory(context, 64),
    event: new Event(context, { timing: true }),
  }
}

test('two devices work at once, each Driver object knowing what the other made current', async () => {
  const api = new FakeDriver([H100, second])
  const [a, b] = [open(api, 0), open(api, 1)]
  for (let i = 0; i < 3; i++) {
    for (const { stream, launch, memory, event } of [a, b]) {
      upload(stream, memory, Uint8Array.of(i))
      launch.on(stream)
      event.record(stream)
    }
  }
  await Promise.all([a, b].flatMap(({ stream, event }) => [stream.finished(), event.finished()]))
  expect(api.launches.map(({ stream }) => stream)).toEqual([0, 1, 2].flatMap(() => [a.stream.handle, b.stream.handle]))
  const graphs = [a, b].map(({ stream, launch }) => new Graph(stream, () => launch.on(stream)))
  graphs[0]!.replay(a.stream)
  graphs[1]!.replay(b.stream)
  graphs[0]![Symbol.dispose]()
  b.context.synchronize()
  expect(a.context.device.name).not.toBe(b.context.device.name)
})

test('what belongs to another device is refused by name, before the driver is asked', () => {
  const api = new FakeDriver([H100, second])
  const [a, b] = [open(api, 0), open(api, 1)]
  const graph = new Graph(a.stream, () => {})
  const before = api.calls.length
  for (const [call, what] of [
    [() => a.launch.on(b.stream), /The stream that kernel is to run on belongs to device 1, the rest .* to device 0/],
    [() => upload(a.stream, b.memory, new Uint8Array(1)), /64 bytes of memory of device 1 belongs to device 1/],
    [() => upload(a.stream, a.memory, b.pinned), /64 bytes of pinned host memory belongs to device 1/],
    [() => download(a.stream, b.memory, new Uint8Array(1)), /belongs to device 1/],
    [() => copy(a.stream, a.memory, b.memory, { bytes: 8 }), /copy through the host/],
    [() => fill(b.stream, a.memory, 0), /belongs to device 0, the rest of the call to device 1/],
    [() => a.event.record(b.stream), /The stream belongs/],
    [() => a.event.since(b.event), /The earlier event belongs/],
    [() => graph.replay(b.stream), /The stream belongs/],
    [() => graph.update(b.stream, () => {}), /The stream belongs/],
    [() => new DeviceMemory(a.stream, 8, { of: b.memory, offset: 0 }), /The whole memory belongs/],
  ] as const) {
    expect(call).toThrow(InvalidArgumentError)
    expect(call).toThrow(what)
  }
  expect(api.calls.length).toBe(before)
  b.stream.wait(a.event) // the one thing that reaches over
  const again = new Context({ device: 0, driver: a.context.driver })
  expect(() => new Event(again).record(a.stream)).toThrow(/belongs to another context of device 0/)
})

test('a plan keeps to the device of its stream', () => {
  const api = new FakeDriver([H100, second])
  const [a, b] = [open(api, 0), open(api, 1)]
  const shape = { dtype: 'bf16', batch: 1, sQ: 1, hQ: 1, pageSize: 64 } as const
  expect(() => planDecode(new KernelLibrary(a.context), b.stream, shape)).toThrow(/kernels are on device 0/)
  const plan = planDecode(new KernelLibrary(b.context), b.stream, shape)
  const memory = (bytes: number, { stream } = b) => new DeviceMemory(stream, bytes)
  const tensors = {
    q: memory(1152),
    kv: memory(64 * 1152),
    numBlocks: 1,
    blockTable: memory(4),
    blockTableStride: 1,
    seqLens: memory(4, a),
    out: memory(1024),
    lse: memory(4),
    scale: 1,
  }
  expect(() => decode(plan, tensors)).toThrow(/seqLens is on device 0, in another context than the plan's on device 1/)
  decode(plan, { ...tensors, seqLens: memory(4) })
  expect(new Set(api.launches.map(({ stream }) => stream))).toEqual(new Set([b.stream.handle]))
})

test('a context that can not be had holds nothing', () => {
  const api = new FakeDriver([H100])
  const driver = new Driver({ api })
  for (const [status, kind] of [
    [801, UnsupportedError],
    [1, /cuDeviceGetDefaultMemPool\(device 0\) failed with CUDA_ERROR_INVALID_VALUE/],
  ] as const) {
    api.failures.set('cuDeviceGetDefaultMemPool', status)
    expect(() => new Context({ device: 0, driver })).toThrow(kind)
    expect([api.retained.get(0), driver.live.size]).toEqual([0, 0])
  }
  for (const device of [-1, 1, 0.5, Number.NaN]) {
    expect(() => new Context({ device, driver })).toThrow(InvalidArgumentError)
  }
})

test('after another library has set its context, makeCurrent sets ours again', () => {
  const api = new FakeDriver([H100, second])
  const { context, stream } = open(api, 1)
  api.call('cuCtxSetCurrent', 0xdeadn) // not over this package
  expect(() => stream.synchronize()).toThrow(/cuStreamSynchronize\(0x[0-9a-f]+\) failed with CUDA_ERROR_INVALID_HANDLE/)
  context.makeCurrent()
  stream.synchronize()
})
