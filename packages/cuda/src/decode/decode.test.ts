import { DisposedError, InvalidArgumentError, UnsupportedError } from '@flashmla/spec'
import { expect, test } from 'vitest'
import { Context } from '../driver/context'
import { Driver } from '../driver/driver'
import { Graph } from '../driver/graph'
import { DeviceMemory } from '../driver/memory'
import { Stream } from '../driver/stream'
import { KernelLibrary, readManifest, targetFor } from '../kernels/library'
import { MlaAppendParams, MlaCastParams, MlaDecodeParams } from '../kernels/params'
import { H100 } from '../testing/fake-device'
import { FakeDriver } from '../testing/fake-driver'
import { append, cast } from './append'
import { decode, planDecode } from './decode'
import { scheduleDecode } from './schedule'
import { type DecodeShape, decodeSymbol } from './shape'

const shape: DecodeShape = { dtype: 'bf16', batch: 4, sQ: 1, hQ: 128, pageSize: 64 }

function setUp(device = H100) {
  const api = new FakeDriver([device])
  api.parameterBytes = (symbol) =>
    symbol === 'mla_append' ? [88] : symbol.startsWith('mla_combine') ? [176] : [176, 128, 128, 128]
  const context = new Context({ device: 0, driver: new Driver({ api }) })
  const stream = new Stream(context)
  return { api, context, stream, library: new KernelLibrary(context) }
}

function tensors(stream: Stream) {
  const memory = (bytes: number) => new DeviceMemory(stream, bytes)
  return {
    q: memory(4 * 128 * 576 * 2),
    kv: memory(8 * 64 * 576 * 2),
    numBlocks: 8,
    blockTable: memory(4 * 2 * 4),
    blockTableStride: 2,
    seqLens: memory(16),
    out: memory(4 * 128 * 512 * 2),
    lse: memory(4 * 128 * 4),
    scale: 0.5,
  }
}

test('a decode launches the kernel of its shape, then the combine, with the parameters of the tensors', () => {
  const { api, context, stream, library } = setUp()
  const given = tensors(stream)
  const plan = planDecode(library, stream, { ...shape, batch: 1 })
  decode(plan, given)
  const [first, second] = api.launches
  expect(first).toMatchObject({ symbol: 'mla_decode_bf16', grid: [132, 1, 1], block: [384, 1, 1] })
  expect(first!.sharedBytes).toBe(library.entry('mla_decode_bf16').sharedBytes)
  expect([...first!.attributes]).toEqual([[6, [1, 0, 0]]])
  expect(second).toMatchObject({ symbol: 'mla_combine_f16', grid: [1, 128, 2], block: [512, 1, 1] })
  expect(second!.attributes.get(6)).toEqual([1, 0, 0])
  const view = new DataView(first!.parameters[0]!.buffer)
  const at = (name: string) => (MlaDecodeParams.offsets as Map<string, number>).get(name)!
  expect(view.getBigUint64(at('kv'), true)).toBe(given.kv.address)
  expect(view.getBigUint64(at('query_start'), true)).toBe(0n)
  expect(view.getBigInt64(at('kv_page_stride'), true)).toBe(64n * 576n)
  expect(view.getFloat32(at('softmax_scale'), true)).toBe(0.5)
  expect(view.getInt32(at('workers'), true)).toBe(132)
  expect(view.getInt32(at('split_by_tile'), true)).toBe(1)
  expect(view.getInt32(at('num_blocks'), true)).toBe(8)
  expect(second!.parameters[0]).toEqual(first!.parameters[0])
  const maps = api.called('cuTensorMapEncodeTiled')
  expect(maps.length).toBe(3)
  decode(plan, given) // ready: two launches and nothing else
  expect(api.calls.slice(-2).map(({ name }) => name)).toEqual(['cuLaunchKernelEx', 'cuLaunchKernelEx'])
  expect(api.called('cuTensorMapEncodeTiled').length).toBe(3)
  given.q[Symbol.dispose]()
  expect(() => decode(plan, given)).toThrow(DisposedError)
  plan[Symbol.dispose]()
  expect(() => plan[Symbol.dispose]()).toThrow(DisposedError)
  expect(context.held.size).toBeGreaterThan(0)
})

test('a plan of many tiles is one launch, and its flags are cleared once', () => {
  const { api, stream, library } = setUp()
  const plan = planDecode(library, stream, { ...shape, sQ: 100 })
  expect(plan.symbol).toBe('mla_decode_bf16_merge')
  const memory = (bytes: number) => new DeviceMemory(stream, bytes)
  const rows = 4 * 100 * 128
  const given = { ...tensors(stream), q: memory(rows * 576 * 2), out: memory(rows * 512 * 2), lse: memory(rows * 4) }
  decode(plan, given)
  decode(plan, given)
  expect(api.launches.map(({ symbol }) => symbol)).toEqual(['mla_decode_bf16_merge', 'mla_decode_bf16_merge'])
  const view = new DataView(api.launches[0]!.parameters[0]!.buffer)
  const at = (name: string) => view.getBigUint64((MlaDecodeParams.offsets as Map<string, number>).get(name)!, true)
  expect([at('partial_lse'), at('splits')]).toEqual([0n, 0n])
  expect(api.called('cuMemsetD8Async')).toEqual([[at('parts_ready'), 0, 132 * 4, expect.anything()]])
  plan[Symbol.dispose]()
})

test('a plan whose blocks share the merging is one launch, and what they wait for is not there at first', () => {
  const { api, stream, library } = setUp()
  const plan = planDecode(library, stream, shape)
  const given = tensors(stream)
  decode(plan, given)
  decode(plan, given)
  expect(api.launches.map(({ symbol }) => symbol)).toEqual(Array(2).fill('mla_decode_bf16_share'))
  const view = new DataView(api.launches[0]!.parameters[0]!.buffer)
  const at = (name: string) => view.getBigUint64((MlaDecodeParams.offsets as Map<string, number>).get(name)!, true)
  expect(at('splits')).toBe(0n)
  expect(api.called('cuMemsetD8Async')).toEqual([
    [at('partial_lse'), 255, 2 * 132 * 64 * 8, expect.anything()],
    [at('parts_ready'), 0, 2 * 132 * 4, expect.anything()],
  ])
  plan[Symbol.dispose]()
})

test('a plan of few rows loads tiles of 16 queries, and its parts are nothing at first', () => {
  const { api, stream, library } = setUp()
  const plan = planDecode(library, stream, { ...shape, batch: 100, hQ: 16 })
  expect(plan.symbol).toBe('mla_decode_bf16_few_merge')
  const memory = (bytes: number) => new DeviceMemory(stream, bytes)
  const rows = 100 * 16
  const given = {
    ...tensors(stream),
    q: memory(rows * 576 * 2),
    out: memory(rows * 512 * 2),
    lse: memory(rows * 4),
    blockTable: memory(100 * 2 * 4),
    seqLens: memory(100 * 4),
  }
  decode(plan, given)
  decode(plan, given)
  expect(api.launches.map(({ symbol }) => symbol)).toEqual(Array(2).fill('mla_decode_bf16_few_merge'))
  const view = new DataView(api.launches[0]!.parameters[0]!.buffer)
  const at = (name: string) => view.getBigUint64((MlaDecodeParams.offsets as Map<string, number>).get(name)!, true)
  expect(api.called('cuMemsetD8Async')).toEqual([[at('partial_out'), 255, 132 * 7 * 256 * 16, expect.anything()]])
  const queries = api.called('cuTensorMapEncodeTiled').filter(([, , rank]) => rank === 3)
  expect(queries.map((call) => Buffer.from(call[6] as Uint8Array).readUInt32LE(4))).toEqual([16])
  plan[Symbol.dispose]()
})

test('a plan refuses tensors that do not fit, and stays as it was', () => {
  const { api, stream, library } = setUp()
  const plan = planDecode(library, stream, shape)
  const given = tensors(stream)
  decode(plan, given)
  for (const [change, message] of [
    [{ q: given.lse }, /q has 2048 bytes; .* needs 589824/],
    [{ numBlocks: 9 }, /kv has/],
    [{ queryStart: given.seqLens }, /queryStart is given/],
    [{ scale: Number.NaN }, /scale is NaN/],
    [{ blockTableStride: 3 }, /blockTable has 32 bytes/],
  ] as const) {
    const launched = api.launches.length
    expect(() => decode(plan, { ...given, ...change })).toThrow(message)
    expect(() => decode(plan, { ...given, ...change })).toThrow(InvalidArgumentError)
    expect(api.launches.length).toBe(launched)
  }
  decode(plan, given)
  expect(api.launches.at(-1)!.parameters[0]).toEqual(api.launches[0]!.parameters[0])
  expect(() => planDecode(library, stream, { ...shape, hQ: 0 })).toThrow('hQ is 0')
  expect(() => planDecode(library, stream, { ...shape, totalQueries: 5 })).toThrow('totalQueries is 5')
})

test('tensors refused half way leave no tensor map behind', () => {
  const { api, stream, library } = setUp()
  const plan = planDecode(library, stream, shape)
  const [given, other] = [tensors(stream), tensors(stream)]
  decode(plan, given)
  other.kv[Symbol.dispose]()
  expect(() => decode(plan, other)).toThrow(DisposedError)
  decode(plan, given)
  const queries = api.called('cuTensorMapEncodeTiled').filter(([, , rank]) => rank === 3)
  expect(queries.at(-1)![3]).toBe(given.q.address)
})

test('kernels and schedules follow the launch plan', () => {
  expect(decodeSymbol({ ...shape, hQ: 64, expectedTokens: 100_000 }, 'sm_90a', 132)).toBe('mla_decode_bf16')
  expect(decodeSymbol({ ...shape, pageSize: 1 }, 'sm_90a', 132)).toBe('mla_decode_bf16_gather')
  expect(decodeSymbol({ ...shape, dtype: 'f16' }, 'compute_80', 132)).toBe('mla_decode_portable_f16')
  const { context, library } = setUp()
  const entry = library.entry('mla_decode_bf16')
  const ragged = scheduleDecode({ ...shape, sQ: 4, totalQueries: 9 }, entry, context.device)
  expect(ragged).toMatchObject({ tilesPerGroup: 4, workers: 132, splitByTile: true, symbol: 'mla_decode_bf16_share' })
})

test('devices without kernels are named', () => {
  expect(() => targetFor([7, 5])).toThrow(UnsupportedError)
  expect(targetFor([8, 6]).target).toBe('compute_80')
  expect(() => readManifest('/nowhere')).toThrow(/can't be read/)
  const { library } = setUp({ ...H100, computeCapability: [12, 0] })
  expect(() => library.entry('mla_decode_bf16')).toThrow(/no kernel mla_decode_bf16 for compute_80/)
})

test('append passes strides of its format, and checks sizes', () => {
  const { api, stream, library } = setUp()
  const memory = (bytes: number) => new DeviceMemory(stream, bytes)
  const given = {
    latent: memory(3 * 576 * 4),
    latentDtype: 'f32',
    n: 3,
    slots: memory(12),
    cache: memory(16 * 656),
    format: 'fp8',
    pageSize: 16,
  } as const
  append(library, stream, given)
  const launch = api.launches[0]!
  expect(launch).toMatchObject({ symbol: 'mla_append', grid: [3, 1, 1], block: [128, 1, 1] })
  const view = new DataView(launch.parameters[0]!.buffer)
  expect(view.getBigInt64(MlaAppendParams.offsets.get('cache_page_stride')!, true)).toBe(16n * 656n)
  expect(() => append(library, stream, { ...given, n: 4 })).toThrow(/latent has 6912 bytes/)
  expect(() => append(library, stream, { ...given, n: -1 })).toThrow('n is -1')
})

test('cast takes 1024 values a block, and checks sizes', () => {
  const { api, stream, library } = setUp()
  api.parameterBytes = () => [MlaCastParams.bytes]
  const [source, target] = [new DeviceMemory(stream, 1028 * 4), new DeviceMemory(stream, 1028 * 2)]
  cast(library, stream, { source, target, n: 1028, dtype: 'f16' })
  expect(api.launches[0]).toMatchObject({ symbol: 'mla_cast', grid: [2, 1, 1], block: [256, 1, 1] })
  const view = new DataView(api.launches[0]!.parameters[0]!.buffer)
  expect([view.getBigUint64(0, true), view.getBigUint64(8, true)]).toEqual([source.address, target.address])
  expect([view.getBigInt64(16, true), view.getInt32(24, true)]).toEqual([1028n, 1])
  for (const n of [1027, 1032, -4]) {
    expect(() => cast(library, stream, { source, target, n, dtype: 'f16' })).toThrow(InvalidArgumentError)
  }
  expect(() => cast(library, stream, { source: target, target, n: 1028, dtype: 'f16' })).toThrow(
    /from 2056 to 2056 bytes/,
  )
  expect(api.launches).toHaveLength(1)
})

test('the library unloads its modules once, and its kernels are refused afterwards', () => {
  const { api, context, stream, library } = setUp()
  const plan = planDecode(library, stream, shape)
  const given = tensors(stream)
  decode(plan, given)
  expect([...api.handles.values()]).toContain('module')
  library[Symbol.dispose]()
  expect([...api.handles.values()]).not.toContain('module')
  expect(() => decode(plan, given)).toThrow(DisposedError)
  expect(() => library.kernel('mla_append')).toThrow(DisposedError)
  expect(() => library[Symbol.dispose]()).toThrow(DisposedError)
  expect(() => context[Symbol.dispose]()).toThrow(/still holds 11 resources/)
})

test('a graph of decodes names the tensors, and the work memory of its plan', () => {
  const { api, stream, library } = setUp()
  const given = tensors(stream)
  const [plan, other] = [planDecode(library, stream, shape), planDecode(library, stream, shape)]
  const captured = (of: typeof plan) => new Graph(stream, () => decode(of, given))
  decode(plan, given) // bound before the captures, which is no matter
  const [first, second] = [captured(plan), captured(other)]
  plan[Symbol.dispose]()
  expect(() => first.replay(stream)).toThrow(DisposedError)
  second.replay(stream)
  given.seqLens[Symbol.dispose]()
  expect(() => second.replay(stream)).toThrow(/^16 bytes of memory of device 0, which a captured graph uses/)
  expect(api.called('cuGraphLaunch')).toHaveLength(1)
})
