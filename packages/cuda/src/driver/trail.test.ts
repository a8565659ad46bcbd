import { expect, test } from 'vitest'
import { CudaError } from '../errors'
import { FakeDriver } from '../testing/fake-driver'
import { Context } from './context'
import { Driver } from './driver'
import { Graph } from './graph'
import { Launch } from './launch'
import { DeviceMemory } from './memory'
import { Module } from './module'
import { Event, Stream } from './stream'
import { encodeTensorMap } from './tensor-map'
import { Trail } from './trail'

function setUp() {
  const api = new FakeDriver()
  const driver = new Driver({ api })
  const context = new Context({ device: 0, driver })
  const stream = new Stream(context)
  const module = new Module(context, 'test.cubin', Uint8Array.of(1))
  const launch = (symbol: string) => {
    const kernel = module.kernel(symbol, 65536)
    return new Launch({ kernel, grid: [4, 2], threads: 64, cluster: 2, parameters: [] })
  }
  return { api, driver, context, stream, module, launch }
}

function caught(call: () => void): CudaError {
  try {
    call()
  } catch (error) {
    if (error instanceof CudaError) return error
    throw error
  }
  throw new TypeError('Nothing was thrown')
}

test('the last eight names are kept, repeated ones once', () => {
  const trail = new Trail()
  expect(trail.list()).toEqual([])
  for (const name of ['a', 'b', 'b', 'c']) trail.add(name)
  expect(trail.list()).toEqual(['a', 'b × 2', 'c'])
  for (let i = 0; i < 7; i++) trail.add('d')
  expect(trail.list()).toEqual(['c', 'd × 7'])
})

test('work that failed on the device is named by the call that finds out', async () => {
  const { api, context, stream, launch } = setUp()
  const [cast, decode] = [launch('mla_cast'), launch('mla_decode')]
  const graph = new Graph(stream, () => decode.on(stream))
  cast.on(stream)
  graph.replay(stream)
  api.failures.set('cuStreamSynchronize', 700)
  const error = caught(() => stream.synchronize())
  expect(error).toMatchObject({ call: 'cuStreamSynchronize', contextLost: true })
  expect(error.queued).toEqual(['mla_cast', 'a graph of mla_decode'])
  expect(error.message).toMatch(
    /CUDA_ERROR_ILLEGAL_ADDRESS \(700\)\. Queued before it: mla_cast, a graph of mla_decode\.\n.*CUDA_LAUNCH_BLOCKING=1/,
  )
  expect(context.lost).toBe(true)
  api.failures.set('cuStreamQuery', 719)
  await expect(stream.finished()).rejects.toMatchObject({ contextLost: true, queued: error.queued })
})

test('an error of the call itself names no others', () => {
  const { api, context, stream, launch } = setUp()
  launch('mla_cast').on(stream)
  api.failures.set('cuStreamSynchronize', 1)
  const error = caught(() => stream.synchronize())
  expect([error.contextLost, error.queued, context.lost]).toEqual([false, [], false])
  expect(error.message).not.toContain('mla_cast')
})

test('a failed launch, attribute or tensor map tells what was asked for', () => {
  const { api, context, stream, module, launch } = setUp()
  const kernel = launch('mla_cast')
  api.failures.set('cuLaunchKernelEx', 1)
  expect(() => kernel.on(stream)).toThrow(
    'cuLaunchKernelEx(mla_cast, grid 4 × 2 × 1, 64 threads, clusters of 2, 65536 bytes of shared memory) failed',
  )
  api.failures.set('cuFuncSetAttribute', 1)
  expect(() => module.kernel('mla_cast', 300_000)).toThrow('(mla_cast, 300000 bytes of shared memory)')
  api.failures.set('cuTensorMapEncodeTiled', 1)
  const map = { dtype: 'f16', address: 0x40n, dims: [576, 12], strides: [1153], box: [64, 64] } as const
  expect(() => encodeTensorMap(context, map)).toThrow('(f16 at 0x40, dims [576,12], strides [1153], box [64,64])')
})

test('what a lost context held can be disposed of: one error, then silence, so that `using` unwinds', () => {
  const { api, driver, context, stream, module, launch } = setUp()
  const [memory, event] = [new DeviceMemory(stream, 8), new Event(context)]
  const graph = new Graph(stream, () => launch('mla_cast').on(stream))
  for (const name of ['cuMemFreeAsync', 'cuStreamSynchronize', 'cuEventDestroy_v2', 'cuModuleUnload'] as const) {
    api.failures.set(name, 700)
  }
  api.failures.set('cuDevicePrimaryCtxRelease_v2', 700)
  expect(() => memory[Symbol.dispose]()).toThrow(CudaError)
  expect(memory.disposed).toBe(true)
  for (const resource of [graph, event, module, stream, context]) resource[Symbol.dispose]()
  expect(driver.live.size).toBe(0)
})

test('what can be given back later stays held when it fails', () => {
  const { api, stream } = setUp()
  api.failures.set('cuStreamSynchronize', 900) // within a capture, say
  expect(() => stream[Symbol.dispose]()).toThrow(CudaError)
  expect(stream.disposed).toBe(false)
  api.failures.delete('cuStreamSynchronize')
  stream[Symbol.dispose]()
  expect(stream.disposed).toBe(true)
})
