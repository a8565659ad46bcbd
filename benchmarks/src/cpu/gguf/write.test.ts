import { createHash } from 'node:crypto'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Checkpoint } from '@flashmla/engine'
import { bf16ToFloat } from '@flashmla/latent'
import { modelDirectory } from '@flashmla/tiny-mla'
import { describe, expect, it } from 'vitest'
import { convertToGguf } from './convert'
import type { GgufTensor, MetadataValue } from './write'
import { ggufChunks } from './write'

interface Parsed {
  readonly metadata: Map<string, unknown>
  readonly tensors: Map<string, { shape: number[]; values: Float32Array }>
  readonly bytes: number
}

/** A reader of its own, after the format's specification. */
function parse(file: Buffer): Parsed {
  let at = 0
  /** Where the next `bytes` bytes begin. */
  const take = (bytes: number) => {
    at += bytes
    return at - bytes
  }
  const u32 = () => file.readUInt32LE(take(4))
  const u64 = () => Number(file.readBigUInt64LE(take(8)))
  const text = () => {
    const length = u64()
    return file.subarray(take(length), at).toString()
  }
  const value = (type: number): unknown => {
    if (type === 4) return u32()
    if (type === 5) return file.readInt32LE(take(4))
    if (type === 6) return file.readFloatLE(take(4))
    if (type === 7) return file[at++] === 1
    if (type === 8) return text()
    const element = u32()
    return Array.from({ length: u64() }, () => value(element))
  }
  expect(file.subarray(0, 4).toString()).toBe('GGUF')
  at = 4
  expect(u32()).toBe(3)
  const [numTensors, numFields] = [u64(), u64()]
  const metadata = new Map(Array.from({ length: numFields }, () => [text(), value(u32())]))
  const directory = Array.from({ length: numTensors }, () => {
    const name = text()
    const shape = Array.from({ length: u32() }, u64).reverse()
    return { name, shape, code: u32(), offset: u64() }
  })
  const data = Math.ceil(at / 32) * 32
  const tensors = new Map(
    directory.map(({ name, shape, code, offset }) => {
      expect(offset % 32).toBe(0)
      const size = shape.reduce((a, b) => a * b, 1)
      const read = (k: number) =>
        code === 0 ? file.readFloatLE(data + offset + k * 4) : bf16ToFloat(file.readUInt16LE(data + offset + k * 2))
      return [name, { shape, values: Float32Array.from({ length: size }, (_, k) => read(k)) }]
    }),
  )
  return { metadata, tensors, bytes: file.length }
}

async function written(metadata: Map<string, MetadataValue>, tensors: GgufTensor[]): Promise<Parsed> {
  const chunks: Buffer[] = []
  for await (const chunk of ggufChunks(metadata, tensors)) chunks.push(chunk)
  return parse(Buffer.concat(chunks))
}

describe('ggufChunks', () => {
  it('writes every kind of value, and tensors of any shape, where a reader finds them', async () => {
    const metadata = new Map<string, MetadataValue>([
      ['a', { type: 'uint32', value: 4_000_000_000 }],
      ['b', { type: 'int32', value: -7 }],
      ['c', { type: 'float32', value: 0.5 }],
      ['d', { type: 'bool', value: true }],
      ['e', { type: 'string', value: 'Ġ' }],
      ['f', { type: 'strings', value: ['', 'é', 'x y'] }],
      ['g', { type: 'int32s', value: [1, -2] }],
    ])
    const tensor = (name: string, dtype: 'f32' | 'bf16', shape: number[]): GgufTensor => {
      const size = shape.reduce((a, b) => a * b, 1)
      return { name, dtype, shape, data: async () => Float32Array.from({ length: size }, (_, k) => k - 3) }
    }
    const read = await written(metadata, [
      tensor('odd', 'bf16', [3, 5]),
      tensor('cube', 'f32', [2, 3, 4]),
      tensor('vector', 'f32', [1]),
    ])
    expect([...read.metadata.values()]).toEqual([4_000_000_000, -7, 0.5, true, 'Ġ', ['', 'é', 'x y'], [1, -2]])
    expect([...read.tensors].map(([name, { shape }]) => [name, shape])).toEqual([
      ['odd', [3, 5]],
      ['cube', [2, 3, 4]],
      ['vector', [1]],
    ])
    for (const { values } of read.tensors.values()) expect([...values]).toEqual([...values].map((_, k) => k - 3))
    expect(read.bytes % 32).toBe(0)
  })

  it('refuses a tensor whose values are not those of its shape', async () => {
    const short: GgufTensor = { name: 'x', dtype: 'f32', shape: [2, 2], data: async () => new Float32Array(3) }
    await expect(written(new Map(), [short])).rejects.toThrow('x has 3 values for [2,2].')
  })
})

it.each(['f32', 'bf16'] as const)(
  'tiny-mla as %s holds the checkpoint, heads split and experts stacked',
  async (dtype) => {
    const folder = await mkdtemp(join(tmpdir(), 'gguf-'))
    const file = join(folder, 'tiny.gguf')
    await convertToGguf(modelDirectory, file, dtype)
    const { metadata, tensors } = parse(await readFile(file))
    await rm(folder, { recursive: true })
    expect(metadata.get('general.architecture')).toBe('deepseek2')
    expect(metadata.get('deepseek2.attention.key_length')).toBe(576)
    expect(metadata.get('deepseek2.attention.key_length_mla')).toBe(128)
    expect(metadata.get('deepseek2.expert_gating_func')).toBe(2)
    expect(metadata.get('deepseek2.expert_group_used_count')).toBe(2)
    expect((metadata.get('tokenizer.ggml.tokens') as string[]).length).toBe(4096)
    const checkpoint = await Checkpoint.open(modelDirectory)
    const layer = 'model.layers.3'
    const kvB = await checkpoint.read(`${layer}.self_attn.kv_b_proj.weight`, [8 * 128, 512])
    const [k, v] = [tensors.get('blk.3.attn_k_b.weight')!, tensors.get('blk.3.attn_v_b.weight')!]
    expect([k.shape, v.shape]).toEqual([
      [8, 512, 64],
      [8, 64, 512],
    ])
    for (const [head, rank, i] of [
      [0, 0, 0],
      [5, 77, 13],
      [7, 511, 63],
    ] as const) {
      expect(k.values[(head * 512 + rank) * 64 + i]).toBe(kvB[(head * 128 + i) * 512 + rank])
      expect(v.values[(head * 64 + i) * 512 + rank]).toBe(kvB[(head * 128 + 64 + i) * 512 + rank])
    }
    const expert = await checkpoint.read(`${layer}.mlp.experts.6.down_proj.weight`, [256, 128])
    const stacked = tensors.get('blk.3.ffn_down_exps.weight')!
    expect(stacked.shape).toEqual([8, 256, 128])
    const hash = (x: Float32Array) =>
      createHash('sha256')
        .update(new Uint8Array(x.buffer, x.byteOffset, x.byteLength))
        .digest('hex')
    expect(hash(stacked.values.slice(6 * 256 * 128, 7 * 256 * 128))).toBe(hash(expert))
    await checkpoint.close()
    // Every weight of the checkpoint is in the file, kv_b_proj as two and 8 experts as one.
    const stackedAway = 4 * 3 * (8 - 1)
    expect(tensors.size).toBe(checkpoint.names.length + 5 - stackedAway)
  },
)
