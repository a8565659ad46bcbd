import { DisposedError, InvalidArgumentError } from '@flashmla/spec'
import { expect, test } from 'vitest'
import { FakeDriver } from '../testing/fake-driver'
import { Context } from './context'
import { Driver } from './driver'
import { Launch } from './launch'
import { Module } from './module'
import { Stream } from './stream'

function setUp() {
  const api = new FakeDriver()
  const context = new Context({ device: 0, driver: new Driver({ api }) })
  return { api, context, stream: new Stream(context) }
}

test('a launch hands over grid, block, shared memory, attributes and parameters by value', () => {
  const { api, context, stream } = setUp()
  const module = new Module(context, 'test.cubin', Uint8Array.of(1))
  const kernel = module.kernel('kernel', 232448)
  expect(api.functionShared.get(kernel.handle)).toBe(232448)
  api.parameterBytes = () => [4, 8]
  const parameters = [Uint8Array.of(1, 2, 3, 4), new Uint8Array(8).fill(9)]
  const launch = new Launch({ kernel, grid: [264, 3], threads: 384, cluster: 2, programmatic: true, parameters })
  launch.on(stream)
  parameters[0]![0] = 5
  launch.setGrid([2, 2])
  launch.on(stream)
  expect(api.launches[0]).toEqual({
    symbol: 'kernel',
    grid: [264, 3, 1],
    block: [384, 1, 1],
    sharedBytes: 232448,
    stream: stream.handle,
    attributes: new Map([
      [4, [2, 1, 1]],
      [6, [1, 0, 0]],
    ]),
    parameters: [Uint8Array.of(1, 2, 3, 4), new Uint8Array(8).fill(9)],
  })
  expect(api.launches[1]).toMatchObject({ grid: [2, 2, 1], parameters: [Uint8Array.of(5, 2, 3, 4), {}] })
  module[Symbol.dispose]()
  expect(() => launch.on(stream)).toThrow(DisposedError)
  expect(() => module.kernel('kernel')).toThrow(DisposedError)
})

test('grids, blocks and clusters that can not be are refused; large clusters are allowed first', () => {
  const { api, context } = setUp()
  const kernel = new Module(context, 'test.cubin', Uint8Array.of(1)).kernel('kernel')
  const make = (change: object) => new Launch({ kernel, grid: [32, 1], threads: 32, parameters: [], ...change })
  for (const [change, message] of [
    [{ grid: [0, 1] }, /grid x is 0/],
    [{ grid: [1, 65536] }, /grid y is 65536/],
    [{ grid: [1, 1, Number.NaN] }, /grid z is NaN/],
    [{ threads: 1025 }, /threads is 1025.*\nGive a whole number from 1 to 1024/],
    [{ cluster: 17 }, /cluster is 17/],
    [{ cluster: 3 }, /grid of 32 blocks along x has no whole clusters of 3/],
  ] as const) {
    expect(() => make(change)).toThrow(InvalidArgumentError)
    expect(() => make(change)).toThrow(message)
  }
  make({ cluster: 8 })
  expect(api.called('cuFuncSetAttribute')).toEqual([])
  make({ cluster: 16 })
  expect(api.called('cuFuncSetAttribute')).toEqual([[kernel.handle, 14, 1]])
})
