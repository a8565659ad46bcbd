import fc from 'fast-check'
import { expect, test } from 'vitest'
import { fakeBackend, field, source } from '../testing/fake-backend'
import { H100 } from '../testing/fake-device'
import type { FakeLaunch } from '../testing/fake-driver'
import { chooseTiles } from './tiles'

const AMPERE = { ...H100, computeCapability: [8, 0] as [number, number] }
const CLUSTER_DIMENSION = 4
const PROGRAMMATIC = 6

const shown = ({ symbol, grid, attributes }: FakeLaunch) =>
  `${symbol} ${grid}${attributes.has(CLUSTER_DIMENSION) ? ` by ${attributes.get(CLUSTER_DIMENSION)![0]}` : ''}`

/** What a product of n rows with this weight launches. */
async function products(shape: readonly [number, number], dtype: 'f32' | 'bf16', device = H100) {
  const { backend, launched } = await fakeBackend({}, device)
  const weight = await backend.weight(source(shape, dtype))
  const [o, i] = shape
  return (n: number, offset = 0) => {
    const x = backend.view(backend.tensor('f32', [n * i + offset]), [n, i], offset)
    return launched(() => backend.linear(backend.tensor('f32', [n, o]), x, weight))[0]!
  }
}

test('f32 weights: a kernel by the rows, 16-byte loads only where rows are aligned', async () => {
  const run = await products([40, 24], 'f32')
  expect([1, 3, 16, 130].map((n) => shown(run(n)))).toEqual([
    'mla_linear_row 5,1,1',
    'mla_linear_few_4 3,1,1',
    'mla_linear_few_8 3,2,1',
    'mla_linear_many 3,1,1',
  ])
  expect([run(1).block, run(130).block]).toEqual([
    [256, 1, 1],
    [128, 1, 1],
  ])
  expect([field(run(2), 'vector'), field(run(2, 1), 'vector'), field(run(2), 'weight_dtype')]).toEqual([1, 0, 2])
})

test('bf16 weights on Ampere: the tensor cores as the weights are read, then tiles', async () => {
  const run = await products([70, 64], 'bf16', AMPERE)
  expect([1, 2, 16, 33, 65].map((n) => shown(run(n)))).toEqual([
    'mla_linear_row 9,1,1',
    'mla_linear_rows_mma 5,1,1',
    'mla_linear_rows_mma 5,1,1',
    'mla_linear_mma_32x32 3,2,1',
    'mla_linear_half 2,1,1',
  ])
  expect(field(run(65), 'weight_map')).toBe(0n)
  const unaligned = await products([70, 36], 'bf16', AMPERE)
  expect([3, 65].map((n) => shown(unaligned(n)))).toEqual(['mla_linear_few_4 5,1,1', 'mla_linear_half 2,1,1'])
})

test('bf16 weights on Hopper: what would take least, tiles shared by clusters where they are few', async () => {
  const narrow = await products([576, 7168], 'bf16')
  expect([1, 4, 128, 2048].map((n) => shown(narrow(n)))).toEqual([
    'mla_linear_row 72,1,1',
    'mla_linear_64x64 8,9,1 by 8',
    'mla_linear_64x128 16,5,1 by 8',
    'mla_linear_128x256 32,3,1 by 2',
  ])
  const square = await products([2048, 2048], 'bf16')
  expect([1, 2, 16, 17, 64, 2048].map((n) => shown(square(n)))).toEqual([
    'mla_linear_row 256,1,1',
    'mla_linear_rows_mma 128,1,1',
    'mla_linear_rows_mma 128,1,1',
    'mla_linear_64x128 4,16,1 by 4',
    'mla_linear_64x128 4,16,1 by 4',
    'mla_linear_128x256 16,8,1',
  ])
  const tall = await products([7168, 2048], 'bf16')
  expect([8, 17].map((n) => shown(tall(n)))).toEqual(['mla_linear_mma_16x32 224,1,1', 'mla_linear_64x128 2,56,1 by 2'])
  expect(shown(square(64, 1))).toBe('mla_linear_half 1,16,1') // rows at odd places
  const map = field(square(64), 'weight_map')
  expect([map, (map as bigint) % 64n]).toEqual([(field(square(64), 'weight') as bigint) + 2n * 2048n * 2048n, 0n])
})

test('the map of a weight describes all its rows, in boxes of 64 x 64', async () => {
  const { backend, api, launched } = await fakeBackend()
  const weight = await backend.weight(source([5, 24, 40], 'bf16'))
  const x = backend.tensor('f32', [9, 5, 40])
  const [launch] = launched(() => backend.headLinear(backend.tensor('f32', [9, 5, 24]), x, weight))
  const [map, dtype, rank, address, dims, strides, box] = api.called('cuTensorMapEncodeTiled')[0]!
  expect([dtype, rank, address]).toEqual([9, 2, field(launch!, 'weight')])
  const numbers = (bytes: unknown) => Buffer.from((bytes as Uint8Array).slice())
  expect([0, 8].map((at) => numbers(dims).readBigUInt64LE(at))).toEqual([40n, 120n])
  expect(numbers(strides).readBigUInt64LE()).toBe(80n)
  expect([0, 4].map((at) => numbers(box).readUInt32LE(at))).toEqual([64, 64])
  const uploaded = api.called('cuMemcpyHtoDAsync_v2').find(([target]) => target === field(launch!, 'weight_map'))
  expect([uploaded?.[1], uploaded?.[2]]).toEqual([map, 128])
})

test('no product starts before what comes before has ended: its kernel does not wait', async () => {
  for (const device of [H100, AMPERE]) {
    const run = await products([2048, 2048], 'bf16', device)
    for (const n of [1, 4, 64, 300]) expect(run(n).attributes.has(PROGRAMMATIC)).toBe(false)
  }
})

test('heads, strides and no rows', async () => {
  const { backend, launched } = await fakeBackend()
  const stack = await backend.weight(source([5, 64, 16], 'bf16'))
  const f32 = await backend.weight(source([5, 64, 16]))
  for (const [weight, symbol, grid, dtype] of [
    [f32, 'mla_linear_many', [1, 1, 5], 2],
    [stack, 'mla_linear_64x64', [1, 1, 5], 0],
  ] as const) {
    const [x, out] = [backend.tensor('f32', [20, 5, 16]), backend.tensor('f32', [20, 5, 64])]
    const [launch] = launched(() => backend.headLinear(out, x, weight))
    expect(launch).toMatchObject({ symbol, grid })
    const names = ['n', 'o', 'i', 'x_stride', 'x_head_stride', 'out_stride', 'out_head_stride', 'heads', 'weight_dtype']
    expect(names.map((name) => field(launch!, name))).toEqual([20, 64, 16, 80, 16, 320, 64, 5, dtype])
  }
  const absorbed = [backend.tensor('f32', [3, 5, 64]), backend.tensor('f32', [3, 5, 32])] as const
  const narrow = await backend.weight(source([5, 64, 32], 'bf16'))
  expect(shown(launched(() => backend.headLinear(...absorbed, narrow))[0]!)).toBe('mla_linear_mma_16x16 4,1,5')
  const plain = await backend.weight(source([40, 24]))
  expect(launched(() => backend.linear(backend.tensor('f32', [0, 40]), backend.tensor('f32', [0, 24]), plain))).toEqual(
    [],
  )
})

test('tiles are chosen for every shape and device, no faster than the weights are read, more rows no faster', () => {
  const size = (max: number) => fc.integer({ min: 1, max })
  fc.assert(
    fc.property(size(4096), size(40000), size(20000), size(128), size(200), (n, o, i, heads, multiprocessors) => {
      const time = (rows: number) =>
        chooseTiles({ n: rows, o, i, heads }, { device: { multiprocessors } } as Parameters<typeof chooseTiles>[1]).time
      expect(time(n)).toBeGreaterThanOrEqual((heads * o * i * 2) / 3e6)
      expect(time(n + 64)).toBeGreaterThanOrEqual(time(n) * 0.999)
    }),
  )
})
