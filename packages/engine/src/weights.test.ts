import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { ReferenceBackend } from '@flashmla/cpu'
import { absorbKvB } from '@flashmla/latent'
import type { Weight, WeightSource } from '@flashmla/spec'
import { CheckpointError, InvalidArgumentError, InvalidConfigError } from '@flashmla/spec'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { Checkpoint } from './checkpoint/checkpoint'
import { Model } from './model'

const fixture = fileURLToPath(new URL('../fixtures/v3-tiny', import.meta.url))
let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'weights-'))
  await cp(fixture, folder, { recursive: true })
})
afterEach(() => rm(folder, { recursive: true }))

/** Counts what is made and what is freed. */
class CountingBackend extends ReferenceBackend {
  weights = 0
  live = 0

  override async weight(source: WeightSource): Promise<Weight> {
    const weight = await super.weight(source)
    this.weights++
    this.live++
    return { shape: weight.shape, dispose: () => this.live-- }
  }
}

async function editConfig(change: Record<string, unknown>): Promise<void> {
  const file = join(folder, 'config.json')
  await writeFile(file, JSON.stringify({ ...JSON.parse(await readFile(file, 'utf8')), ...change }))
}

describe('Model.load', () => {
  it('finds a tensor of the wrong shape before anything is read', async () => {
    await editConfig({ vocab_size: 1 + JSON.parse(await readFile(join(folder, 'config.json'), 'utf8')).vocab_size })
    const backend = new CountingBackend()
    const error = await Model.load(folder, { backend }).catch((thrown) => thrown)
    expect(error).toBeInstanceOf(CheckpointError)
    expect(error.tensor).toBe('model.embed_tokens.weight')
    expect(error.file).toBe(join(folder, 'model.safetensors'))
    expect(backend.weights).toBe(0)
  })

  it('finds a missing tensor before anything is read', async () => {
    await editConfig({ num_hidden_layers: 99 })
    const backend = new CountingBackend()
    const error = await Model.load(folder, { backend }).catch((thrown) => thrown)
    expect(error).toBeInstanceOf(CheckpointError)
    expect(error.tensor).toMatch(/^model\.layers\.\d+\./)
    expect(backend.weights).toBe(0)
  })

  it('frees what it has read when a read fails, and everything on dispose', async () => {
    const broken = new CountingBackend()
    const weight = broken.weight.bind(broken)
    broken.weight = async (source) => {
      if (source.name === 'lm_head.weight') throw new CheckpointError({ file: folder, fact: 'the disk is gone.' })
      return weight(source)
    }
    await expect(Model.load(folder, { backend: broken })).rejects.toThrow(/the disk is gone/)
    expect(broken.weights).toBeGreaterThan(0)
    expect(broken.live).toBe(0)

    const backend = new CountingBackend()
    const model = await Model.load(folder, { backend })
    expect(backend.live).toBe(backend.weights)
    model.dispose()
    expect(backend.live).toBe(0)
  })

  it('keeps the parts of kv_b_proj in bf16 where that loses nothing', async () => {
    const file = join(folder, 'model.safetensors')
    const bytes = await readFile(file)
    const length = Number(bytes.readBigUInt64LE(0))
    const header = JSON.parse(bytes.subarray(8, 8 + length).toString())
    const [start, end] = header['model.layers.0.self_attn.kv_b_proj.weight'].data_offsets
    for (let at = 8 + length + start; at < 8 + length + end; at += 4) bytes.writeUInt16LE(0, at)
    await writeFile(file, bytes)
    const backend = new CountingBackend()
    const parts: WeightSource[] = []
    const weight = backend.weight.bind(backend)
    backend.weight = async (source) => {
      if (/W_U[KV]$/.test(source.name)) parts.push(source)
      return weight(source)
    }
    const model = await Model.load(folder, { backend })
    expect(parts.slice(0, 4).map(({ dtype }) => dtype)).toEqual(['bf16', 'bf16', 'f32', 'f32'])
    const read = await Checkpoint.open(folder)
    const { numHeads: h, qkNopeHeadDim: nope, vHeadDim: v, kvLoraRank: rank } = model.config
    const kvB = await read.read('model.layers.0.self_attn.kv_b_proj.weight', [h * (nope + v), rank])
    await read.close()
    const { uk } = absorbKvB(kvB, h, nope, v, rank)
    const words = new Uint16Array(uk.length)
    await parts[0]!.read(new Uint8Array(words.buffer))
    expect([...words]).toEqual([...new Uint32Array(uk.buffer)].map((word) => word >>> 16))
    model.dispose()
  })

  it('says at once that there is no room for a cache, whatever its size', async () => {
    const backend = new CountingBackend()
    backend.cache = () => {
      throw new Error('no room')
    }
    const start = performance.now()
    await expect(Model.load(folder, { backend, numBlocks: 2 ** 31 - 1 })).rejects.toThrow('no room')
    expect(performance.now() - start).toBeLessThan(2000) // the pool's own 16 GiB took longer
  })

  it('frees everything when the options can not be served, or the memory ends', async () => {
    const backend = new CountingBackend()
    await expect(Model.load(folder, { backend, numBlocks: 0 })).rejects.toThrow(InvalidArgumentError)
    expect(backend.weights).toBeGreaterThan(0)
    expect(backend.live).toBe(0)

    for (const room of [0, 2, 3, 9]) {
      let made = 0
      const count = <T extends { dispose(): void }>(resource: T): T => {
        if (made++ === room) throw new Error('the memory is full')
        backend.live++
        const dispose = resource.dispose.bind(resource)
        return Object.assign(resource, {
          dispose() {
            backend.live--
            dispose()
          },
        })
      }
      const full = new CountingBackend()
      full.weight = backend.weight.bind(backend)
      const [cache, batch] = [full.cache.bind(full), full.batch.bind(full)]
      full.cache = (...sizes) => count(cache(...sizes))
      full.batch = (capacity) => count(batch(capacity))
      await Model.load(folder, { backend: full, numBlocks: 4 }).then(
        (model) => model.dispose(),
        (error) => expect(error.message).toBe('the memory is full'),
      )
      expect(backend.live).toBe(0)
    }
  })

  it('runs steps that are asked for together one after the other', async () => {
    const model = await Model.load(folder, { backend: new ReferenceBackend(), numBlocks: 16 })
    // More rows of logits than are read at a time.
    const prompts = [7, 11].map((factor) => Array.from({ length: 150 }, (_, i) => (i * factor + 3) % 320))
    const alone: Float32Array[] = []
    for (const prompt of prompts) alone.push(await model.forward(model.sequence(), prompt))
    const together = await Promise.all(prompts.map((prompt) => model.forward(model.sequence(), prompt)))
    expect(together.map((logits, i) => logits.every((logit, at) => logit === alone[i]![at]))).toEqual([true, true])
  })

  it('appends nothing when a step fails', async () => {
    const backend = new ReferenceBackend()
    const model = await Model.load(folder, { backend, pageSize: 4 })
    const sequence = model.sequence()
    await model.forward(sequence, [1, 2, 3])
    const expected = (await model.forward(sequence, [4, 5])).slice()
    sequence.truncate(3)
    const attention = backend.attention
    backend.attention = () => {
      throw new Error('the device is gone')
    }
    await expect(model.forward(sequence, [4, 5])).rejects.toThrow(/device is gone/)
    expect(sequence.length).toBe(3)
    backend.attention = attention
    expect(await model.forward(sequence, [4, 5])).toEqual(expected)
  })

  it('refuses weights quantized in a way it does not read', async () => {
    await editConfig({ quantization_config: { quant_method: 'gptq', bits: 4 } })
    await expect(Model.load(folder, { backend: new ReferenceBackend() })).rejects.toThrow(/gptq/)
    await editConfig({ quantization_config: { quant_method: 'fp8', weight_block_size: [128, 128] } })
    expect((await Model.load(folder, { backend: new ReferenceBackend() })).config.numLayers).toBeGreaterThan(0)
  })

  it('tells how many of how many tensors are read', async () => {
    const heard: [number, number][] = []
    await Model.load(folder, { backend: new ReferenceBackend(), progress: (...step) => heard.push(step) })
    const total = heard.length
    expect(heard).toEqual(Array.from({ length: total }, (_, i) => [i + 1, total]))
  })

  it.each([
    [
      'no config.json',
      async () => rm(join(folder, 'config.json')),
      CheckpointError,
      /config\.json: the file is missing.*Hugging Face/s,
    ],
    [
      'a config.json that is no object',
      async () => writeFile(join(folder, 'config.json'), '[]'),
      CheckpointError,
      /not a JSON object/,
    ],
    [
      'a config.json that is not JSON',
      async () => writeFile(join(folder, 'config.json'), '{'),
      CheckpointError,
      /not JSON/,
    ],
    ['a field that is missing', () => editConfig({ kv_lora_rank: undefined }), InvalidConfigError, /kv_lora_rank/],
    [
      'a field of the wrong kind',
      () => editConfig({ num_attention_heads: 'many' }),
      InvalidConfigError,
      /num_attention_heads/,
    ],
  ])('refuses %s', async (_, damage, kind, message) => {
    await damage()
    const error = await Model.load(folder, { backend: new ReferenceBackend() }).catch((thrown) => thrown)
    expect(error).toBeInstanceOf(kind)
    expect(error.message).toMatch(message)
  })
})
