import { readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { generate, Model } from '@flashmla/engine'
import { afterAll, describe, expect, it } from 'vitest'
import { createCpuBackend } from './create'

const engine = fileURLToPath(new URL('../../../engine/', import.meta.url))
const fixtures = `${engine}fixtures/`
const tiny = fileURLToPath(new URL('../../../tiny-mla/model/', import.meta.url))

async function golden(name: string) {
  const file = await readFile(`${fixtures}${name}/golden.safetensors`)
  const length = Number(file.readBigUInt64LE(0))
  const header = JSON.parse(file.subarray(8, 8 + length).toString())
  const bytes = (key: string) => {
    const [start, end] = header[key].data_offsets
    return new Uint8Array(file.subarray(8 + length + start, 8 + length + end)).buffer
  }
  return { ids: new Int32Array(bytes('input_ids')), logits: new Float32Array(bytes('logits')) }
}

function worst(actual: Float32Array, expected: Float32Array): number {
  let max = 0
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs(actual[i]! - expected[i]!)
    if (!(difference <= max)) max = difference
  }
  return max
}

describe.each([1, 2, 3])('%i threads', async (threads) => {
  const backend = await createCpuBackend({ threads, spin: 1000 })
  afterAll(() => backend[Symbol.asyncDispose]())

  describe.each(['v2-lite-tiny', 'v2-lite-yarn-tiny', 'v3-tiny', 'v3-yarn-tiny'])('%s', (name) => {
    it.each([
      { attention: 'absorbed', pageSize: 1, chunk: 150 },
      { attention: 'absorbed', pageSize: 16, chunk: 1 },
      { attention: 'absorbed', pageSize: 64, chunk: 7 },
      { attention: 'naive', pageSize: 16, chunk: 64 },
      { attention: 'naive', pageSize: 64, chunk: 150 },
    ] as const)('golden logits: $attention, page $pageSize, chunk $chunk', async ({ attention, pageSize, chunk }) => {
      const { ids, logits } = await golden(name)
      const model = await Model.load(fixtures + name, { backend, attention, pageSize })
      const vocab = model.config.vocabSize
      for (const row of [0, 1]) {
        const sequence = model.sequence()
        for (let i = 0; i < 150; i += chunk) {
          const tokens = [...ids.subarray(row * 150 + i, row * 150 + Math.min(i + chunk, 150))]
          const actual = await model.forward(sequence, tokens)
          const start = (row * 150 + i) * vocab
          expect(worst(actual, logits.subarray(start, start + tokens.length * vocab))).toBeLessThan(1e-3)
        }
        sequence.free()
      }
      model.dispose()
    })
  })

  it("tiny-mla's last logits and greedy tokens equal the golden ones", async () => {
    const cases: { prompt_ids: number[]; greedy_ids: number[]; last_logits: number[] }[] = JSON.parse(
      await readFile(`${tiny}golden.json`, 'utf8'),
    )
    const model = await Model.load(tiny, { backend })
    for (const { prompt_ids, greedy_ids, last_logits } of cases) {
      const sequence = model.sequence()
      const logits = await model.forward(sequence, prompt_ids)
      expect(worst(logits.subarray(-model.config.vocabSize), Float32Array.from(last_logits))).toBeLessThan(1e-3)
      sequence.free()
      const tokens: number[] = []
      for await (const token of generate(model, prompt_ids, { maxTokens: 16 })) tokens.push(token)
      expect(tokens).toEqual(greedy_ids.slice(0, 16))
    }
    model.dispose()
  })
})

it.each(['f32', 'bf16', 'q8'] as const)('tiny-mla with %s weights follows the golden tokens', async (weights) => {
  const backend = await createCpuBackend({ threads: 2, weights })
  const model = await Model.load(tiny, { backend })
  const [first]: { prompt_ids: number[]; last_logits: number[] }[] = JSON.parse(
    await readFile(`${tiny}golden.json`, 'utf8'),
  )
  const logits = await model.forward(model.sequence(), first!.prompt_ids)
  const error = worst(logits.subarray(-model.config.vocabSize), Float32Array.from(first!.last_logits))
  expect(error).toBeLessThan(weights === 'q8' ? 1 : 1e-3)
  expect(backend.quantizationErrors.length > 0).toBe(weights === 'q8')
  for (const { relative } of backend.quantizationErrors) expect(relative).toBeLessThan(0.01)
  await backend[Symbol.asyncDispose]()
})
