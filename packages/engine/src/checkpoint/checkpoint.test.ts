import { mkdir, mkdtemp, open, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { floatToE4m3 } from '@flashmla/latent'
import { CheckpointError } from '@flashmla/spec'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Checkpoint } from './checkpoint'
import { encodeSafetensors } from './encode'

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'checkpoint-'))
})
afterEach(() => rm(folder, { recursive: true }))

type Header = Record<string, { dtype: string; shape: number[]; data_offsets: number[] } | Record<string, string>>

function file(header: Header | string, data: Uint8Array = new Uint8Array()): Uint8Array {
  const text = new TextEncoder().encode(typeof header === 'string' ? header : JSON.stringify(header))
  const bytes = new Uint8Array(8 + text.length + data.length)
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true)
  bytes.set(text, 8)
  bytes.set(data, 8 + text.length)
  return bytes
}

const write = (name: string, bytes: Uint8Array | string) => writeFile(join(folder, name), bytes)
const one = (header: Header | string, data?: Uint8Array) => write('model.safetensors', file(header, data))
const pair: Header = {
  __metadata__: { format: 'pt' },
  a: { dtype: 'F32', shape: [2], data_offsets: [0, 8] },
  b: { dtype: 'BF16', shape: [1, 2], data_offsets: [8, 12] },
}

/** The error names the file and, where there is one, the tensor. */
async function fails(action: Promise<unknown>, fileName: string, tensor: string | undefined, fact: RegExp) {
  const error = await action.then(
    () => undefined,
    (thrown) => thrown,
  )
  expect(error).toBeInstanceOf(CheckpointError)
  expect(error.file).toBe(fileName ? join(folder, fileName) : folder)
  expect(error.tensor).toBe(tensor)
  expect(error.message).toMatch(fact)
}

describe('Checkpoint', () => {
  it('reads every dtype by range', async () => {
    const data = new Uint8Array(20)
    new Float32Array(data.buffer, 0, 2).set([1.5, -2])
    new Uint16Array(data.buffer, 8).set([0x3fc0, 0xc000, 0x3e00, 0xc000, 0x7bff, 0x0001])
    await one({ ...pair, c: { dtype: 'F16', shape: [4], data_offsets: [12, 20] } }, data)
    const checkpoint = await Checkpoint.open(folder)
    expect([...(await checkpoint.read('a', [2]))]).toEqual([1.5, -2])
    expect([...(await checkpoint.read('b', [1, 2]))]).toEqual([1.5, -2])
    expect([...(await checkpoint.read('c', [4]))]).toEqual([1.5, -2, 65504, 2 ** -24])
    expect(checkpoint.bytes).toBe(20)
    await checkpoint.close()
  })

  it('multiplies each 128 × 128 block of F8_E4M3 by its scale', async () => {
    const [rows, columns] = [130, 200]
    const data = new Uint8Array(rows * columns + 16)
    for (let i = 0; i < rows * columns; i++) data[i] = floatToE4m3((i % 23) - 11)
    const scales = new Float32Array([1, 2, 0.5, 0.25])
    data.set(new Uint8Array(scales.buffer), rows * columns)
    await one(
      {
        'w.weight': { dtype: 'F8_E4M3', shape: [rows, columns], data_offsets: [0, rows * columns] },
        'w.weight_scale_inv': { dtype: 'F32', shape: [2, 2], data_offsets: [rows * columns, rows * columns + 16] },
      },
      data,
    )
    const checkpoint = await Checkpoint.open(folder)
    const weight = await checkpoint.read('w.weight', [rows, columns])
    for (const [r, c] of [
      [0, 0],
      [127, 127],
      [0, 128],
      [129, 5],
      [129, 199],
    ] as const) {
      const stored = ((r * columns + c) % 23) - 11
      expect(weight[r * columns + c]).toBe(stored * scales[(r >> 7) * 2 + (c >> 7)]!)
    }
    expect(checkpoint.names).toEqual(['w.weight'])
    await checkpoint.close()
  })

  it('reads what encodeSafetensors writes', async () => {
    const data = Float32Array.of(1, 2, 3, 4, 5, 6)
    await write(
      'model.safetensors',
      encodeSafetensors({
        'a.é': { shape: [2], data: data.subarray(0, 2) },
        b: { shape: [2, 2], data: data.subarray(2) },
      }),
    )
    const checkpoint = await Checkpoint.open(folder)
    expect([...(await checkpoint.read('a.é', [2])), ...(await checkpoint.read('b', [2, 2]))]).toEqual([...data])
    await checkpoint.close()
  })

  it('reads tensors without elements, whatever the order of the header', async () => {
    const { a, b } = pair
    await one({ b: b!, none: { dtype: 'F32', shape: [0, 2], data_offsets: [8, 8] }, a: a! }, new Uint8Array(12))
    const checkpoint = await Checkpoint.open(folder)
    expect([...(await checkpoint.read('none', [0, 2]))]).toEqual([])
    await checkpoint.close()
  })

  it('names a missing or misshapen scale before reading', async () => {
    await one({ 'w.weight': { dtype: 'F8_E4M3', shape: [2, 2], data_offsets: [0, 4] } }, new Uint8Array(4))
    const checkpoint = await Checkpoint.open(folder)
    expect(() => checkpoint.source('w.weight', [2, 2])).toThrow(/w\.weight_scale_inv: the tensor is missing/)
    await checkpoint.close()
  })

  it('reads past 4 GiB without loading the file', async () => {
    const gap = 5 * 2 ** 30
    const header = file({
      far: { dtype: 'F32', shape: [gap / 4], data_offsets: [0, gap] },
      a: { dtype: 'F32', shape: [2], data_offsets: [gap, gap + 8] },
    })
    await write('model.safetensors', header)
    const handle = await open(join(folder, 'model.safetensors'), 'r+')
    await handle.write(new Uint8Array(new Float32Array([7, 8]).buffer), 0, 8, header.length + gap)
    await handle.close()
    const checkpoint = await Checkpoint.open(folder)
    expect([...(await checkpoint.read('a', [2]))]).toEqual([7, 8])
    await checkpoint.close()
  })

  it.each<[string, Header | string, string | undefined, RegExp]>([
    ['a header that is not JSON', '{"a":', undefined, /header is not JSON/],
    ['a header that is a list', '[]', undefined, /not a JSON object/],
    [
      'an entry without offsets',
      '{"a":{"dtype":"F32","shape":[2]}}',
      'a',
      /lacks a dtype, a shape or two data_offsets/,
    ],
    ['negative offsets', { a: { dtype: 'F32', shape: [2], data_offsets: [-8, 0] } }, 'a', /data_offsets/],
    ['backward offsets', { a: { dtype: 'F32', shape: [2], data_offsets: [8, 0] } }, 'a', /backwards/],
    ['overlapping tensors', { ...pair, b: { dtype: 'BF16', shape: [2], data_offsets: [4, 8] } }, 'b', /overlaps/],
    ['a gap', { ...pair, b: { dtype: 'BF16', shape: [2], data_offsets: [10, 14] } }, 'b', /gap/],
    ['a shape of another size', { a: { dtype: 'F32', shape: [3], data_offsets: [0, 8] } }, 'a', /takes 12/],
    ['an end past the file', { a: { dtype: 'F32', shape: [9], data_offsets: [0, 36] } }, 'a', /truncated/],
  ])('refuses %s', async (_, header, tensor, fact) => {
    await one(header, new Uint8Array(20))
    await fails(Checkpoint.open(folder), 'model.safetensors', tensor, fact)
  })

  it('refuses a truncated file, an empty one and a header longer than the file', async () => {
    await one(pair, new Uint8Array(12))
    await truncate(join(folder, 'model.safetensors'), file(pair).length + 9)
    await fails(Checkpoint.open(folder), 'model.safetensors', 'b', /truncated/)
    await write('model.safetensors', new Uint8Array(3))
    await fails(Checkpoint.open(folder), 'model.safetensors', undefined, /too few/)
    await write('model.safetensors', new Uint8Array([200, 0, 0, 0, 0, 0, 0, 0, 1]))
    await fails(Checkpoint.open(folder), 'model.safetensors', undefined, /does not fit/)
    await write('model.safetensors', new Uint8Array(9).fill(255))
    await fails(Checkpoint.open(folder), 'model.safetensors', undefined, /allows 100000000/)
  })

  it('names a missing tensor and a wrong shape', async () => {
    await one(pair, new Uint8Array(12))
    const checkpoint = await Checkpoint.open(folder)
    expect(() => checkpoint.source('absent', [1])).toThrow(/tensor absent: the tensor is missing/)
    expect(() => checkpoint.source('a', [1, 2])).toThrow(/its shape is \[2\], config.json makes it \[1,2\]/)
    await checkpoint.close()
  })

  it('names a missing shard, a tensor that its shard lacks, and a bad index', async () => {
    await write('model.safetensors.index.json', JSON.stringify({ weight_map: { a: 'one.safetensors' } }))
    await fails(Checkpoint.open(folder), 'one.safetensors', undefined, /can't be opened/)
    await write('one.safetensors', file({}))
    await fails(Checkpoint.open(folder), 'one.safetensors', 'a', /the file lacks it/)
    await write('model.safetensors.index.json', '{')
    await fails(Checkpoint.open(folder), 'model.safetensors.index.json', undefined, /weight_map/)
    await write('model.safetensors.index.json', JSON.stringify({ weight_map: { a: '../../etc/passwd' } }))
    await fails(Checkpoint.open(folder), 'model.safetensors.index.json', undefined, /weight_map/)
  })

  it('refuses a tensor in two shards, an empty index and a shard that is no file', async () => {
    const index = (weight_map: object) => write('model.safetensors.index.json', JSON.stringify({ weight_map }))
    await index({ a: 'one.safetensors', b: 'two.safetensors' })
    const { a, b } = pair
    await write('one.safetensors', file({ a: a! }, new Uint8Array(8)))
    await write('two.safetensors', file({ a: a!, b: b! }, new Uint8Array(12)))
    await fails(Checkpoint.open(folder), 'two.safetensors', 'a', /it is in .*one\.safetensors too/)
    await index({})
    await fails(Checkpoint.open(folder), 'model.safetensors.index.json', undefined, /weight_map is empty/)
    await index({ a: '..' })
    await fails(Checkpoint.open(folder), 'model.safetensors.index.json', undefined, /file names/)
  })

  it('refuses bytes that no tensor owns, and names a dtype it does not read', async () => {
    await one(pair, new Uint8Array(76))
    await fails(Checkpoint.open(folder), 'model.safetensors', undefined, /64 bytes after its last tensor/)
    await one({ a: { dtype: 'F8_E5M2', shape: [4], data_offsets: [0, 4] } }, new Uint8Array(4))
    const checkpoint = await Checkpoint.open(folder)
    expect(() => checkpoint.source('a', [4])).toThrow(/dtype F8_E5M2 is not read/)
    await checkpoint.close()
  })

  it('names a folder in the place of a file, and what fails while a tensor is read', async () => {
    await mkdir(join(folder, 'model.safetensors'))
    await fails(Checkpoint.open(folder), 'model.safetensors', undefined, /is no file/)
    await rm(join(folder, 'model.safetensors'), { recursive: true })
    await one(pair, new Uint8Array(12))
    const checkpoint = await Checkpoint.open(folder)
    await truncate(join(folder, 'model.safetensors'), file(pair).length + 4)
    await fails(checkpoint.read('a', [2]), 'model.safetensors', 'a', /ends inside the tensor/)
    await checkpoint.close()
    await fails(checkpoint.read('a', [2]), 'model.safetensors', 'a', /reading failed/)
    await mkdir(join(folder, 'model.safetensors.index.json'))
    await fails(Checkpoint.open(folder), 'model.safetensors.index.json', undefined, /can't be read/)
  })

  it('names an absent checkpoint', async () => {
    await fails(Checkpoint.open(folder), 'model.safetensors', undefined, /can't be opened/)
  })
})
