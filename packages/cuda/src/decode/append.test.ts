import { InvalidArgumentError } from '@flashmla/spec'
import { expect, test } from 'vitest'
import { Context } from '../driver/context'
import { Driver } from '../driver/driver'
import { DeviceMemory } from '../driver/memory'
import { Stream } from '../driver/stream'
import { KernelLibrary } from '../kernels/library'
import { MlaAppendParams } from '../kernels/params'
import { H100 } from '../testing/fake-device'
import { FakeDriver } from '../testing/fake-driver'
import { type AppendTensors, append, cast } from './append'

function setUp() {
  const api = new FakeDriver([H100, H100])
  api.parameterBytes = () => [MlaAppendParams.bytes]
  const [first, second] = [0, 1].map((device) => {
    const context = new Context({ device, driver: new Driver({ api }) })
    const stream = new Stream(context)
    const memory = (bytes: number) => new DeviceMemory(stream, bytes)
    return { context, stream, memory, library: new KernelLibrary(context) }
  })
  const { memory } = first!
  const tensors: AppendTensors = {
    latent: memory(2 * 1152),
    latentDtype: 'bf16',
    n: 2,
    norm: { weight: memory(2048), eps: 1e-6 },
    rotary: { table: memory(4096), positions: memory(8), interleaved: true },
    slots: memory(8),
    cache: memory(64 * 1152),
    format: 'bf16',
    pageSize: 64,
  }
  return { api, first: first!, second: second!, tensors }
}

test('norm and rotary are passed on, and null without them', () => {
  const { api, first, tensors } = setUp()
  append(first.library, first.stream, tensors)
  append(first.library, first.stream, { ...tensors, norm: undefined, rotary: undefined } as AppendTensors)
  const [all, plain] = api.launches.map(({ parameters }) => new DataView(parameters[0]!.slice().buffer))
  const address = (view: DataView, name: 'norm_weight' | 'rotary_table' | 'positions') =>
    view.getBigUint64(MlaAppendParams.offsets.get(name)!, true)
  const { norm, rotary } = tensors
  expect(address(all!, 'norm_weight')).toBe(norm!.weight.address)
  expect(address(all!, 'rotary_table')).toBe(rotary!.table.address)
  expect(address(all!, 'positions')).toBe(rotary!.positions.address)
  expect(all!.getFloat32(MlaAppendParams.offsets.get('norm_eps')!, true)).toBeCloseTo(1e-6, 12)
  expect(all!.getInt32(MlaAppendParams.offsets.get('interleaved')!, true)).toBe(1)
  for (const name of ['norm_weight', 'rotary_table', 'positions'] as const) expect(address(plain!, name)).toBe(0n)
  append(first.library, first.stream, { ...tensors, n: 0 })
  expect(api.launches).toHaveLength(2)
})

test('what is too small, unknown or of another device is refused before a launch', () => {
  const { api, first, second, tensors } = setUp()
  for (const [change, message] of [
    [{ format: 'fp4' }, /as fp4/],
    [{ latentDtype: 'f64' }, /Rows of f64/],
    [{ norm: { weight: tensors.norm!.weight, eps: Number.NaN } }, /with eps NaN/],
    [{ norm: { weight: first.memory(4), eps: 1 } }, /norm\.weight has 4 bytes.* 2048 are needed/],
    [{ rotary: { ...tensors.rotary!, positions: first.memory(4) } }, /rotary\.positions has 4 bytes/],
    [{ slots: second.memory(8) }, /slots has 8 bytes on device 1/],
    [{ pageSize: 0 }, /pageSize 0/],
  ] as const) {
    const call = () => append(first.library, first.stream, { ...tensors, ...change } as AppendTensors)
    expect(call).toThrow(InvalidArgumentError)
    expect(call).toThrow(message)
  }
  expect(() => append(second.library, first.stream, tensors)).toThrow(/mla_append is to run on belongs to device 0/)
  const values = { source: first.memory(16), target: first.memory(8), n: 4, dtype: 'bf16' } as const
  expect(() => cast(first.library, second.stream, values)).toThrow(InvalidArgumentError)
  expect(api.launches).toEqual([])
})
