import { readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { ReferenceBackend } from '@flashmla/cpu'
import { describe, expect, it } from 'vitest'
import { generate } from './generate'
import { Model } from './model'

const fixtures = fileURLToPath(new URL('../fixtures/', import.meta.url))
const tiny = fileURLToPath(new URL('../../tiny-mla/model/', import.meta.url))

/** input_ids, logits and greedy of a golden file, which holds I32 and so is read apart from a checkpoint. */
async function golden(name: string) {
  const file = await readFile(`${fixtures}${name}/golden.safetensors`)
  const length = Number(file.readBigUInt64LE(0))
  const header = JSON.parse(file.subarray(8, 8 + length).toString())
  const bytes = (key: string) => {
    const [start, end] = header[key].data_offsets
    return new Uint8Array(file.subarray(8 + length + start, 8 + length + end)).buffer
  }
  return {
    ids: new Int32Array(bytes('input_ids')),
    logits: new Float32Array(bytes('logits')),
    greedy: new Int32Array(bytes('greedy')),
  }
}

function worst(actual: Float32Array, expected: Float32Array): number {
  let max = 0
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs(actual[i]! - expected[i]!)
    max = Math.max(max, difference)
  }
  return max
}

describe.each(['v2-lite-tiny', 'v2-lite-yarn-tiny', 'v3-tiny', 'v3-yarn-tiny'])('%s', (name) => {
  const paths = ['absorbed', 'naive'].flatMap((attention) => [1, 16, 64].map((pageSize) => ({ attention, pageSize })))
  it.each(paths as { attention: 'absorbed' | 'naive'; pageSize: number }[])(
    'logits equal the golden ones in chunks of 1, 7, 64 and in one piece: $attention, page $pageSize',
    async ({ attention, pageSize }) => {
      const { ids, logits } = await golden(name)
      const model = await Model.load(fixtures + name, { backend: new ReferenceBackend(), attention, pageSize })
      const vocab = model.config.vocabSize
      for (const [row, chunk] of [1, 7, 64, 150].flatMap((chunk) => [[0, chunk] as const, [1, chunk] as const])) {
        const sequence = model.sequence()
        for (let i = 0; i < 150; i += chunk) {
          const tokens = [...ids.subarray(row * 150 + i, row * 150 + Math.min(i + chunk, 150))]
          const actual = await model.forward(sequence, tokens)
          const start = (row * 150 + i) * vocab
          expect(worst(actual, logits.subarray(start, start + tokens.length * vocab))).toBeLessThan(1e-3)
        }
        sequence.free()
      }
      expect(model.pool.numFree).toBe(model.pool.numBlocks)
    },
  )

  it('a fork goes on from a shared partial page without disturbing its parent', async () => {
    const { ids, logits } = await golden(name)
    const model = await Model.load(fixtures + name, { backend: new ReferenceBackend(), pageSize: 16 })
    const vocab = model.config.vocabSize
    const parent = model.sequence()
    await model.forward(parent, [...ids.subarray(0, 21)])
    const child = parent.fork()
    await model.forward(child, [...ids.subarray(150, 155)])
    const actual = await model.forward(parent, [...ids.subarray(21, 30)])
    expect(worst(actual, logits.subarray(21 * vocab, 30 * vocab))).toBeLessThan(1e-3)
    child.free()
    parent.free()
    expect(model.pool.numFree).toBe(model.pool.numBlocks)
  })

  it('greedy tokens equal the golden ones', async () => {
    const { ids, greedy } = await golden(name)
    const model = await Model.load(fixtures + name, { backend: new ReferenceBackend() })
    for (const row of [0, 1]) {
      const tokens: number[] = []
      for await (const token of generate(model, [...ids.subarray(row * 150, row * 150 + 12)], {
        maxTokens: 40,
        ignoreEos: true,
      }))
        tokens.push(token)
      expect(tokens).toEqual([...greedy.subarray(row * 40, row * 40 + 40)])
    }
  })
})

it("tiny-mla's last logits and first greedy tokens equal the golden ones", async () => {
  const cases: { prompt_ids: number[]; greedy_ids: number[]; last_logits: number[] }[] = JSON.parse(
    await readFile(`${tiny}golden.json`, 'utf8'),
  )
  const model = await Model.load(tiny, { backend: new ReferenceBackend() })
  for (const { prompt_ids, greedy_ids, last_logits } of cases) {
    const sequence = model.sequence()
    const logits = await model.forward(sequence, prompt_ids)
    expect(worst(logits.subarray(-model.config.vocabSize), Float32Array.from(last_logits))).toBeLessThan(1e-3)
    sequence.free()
    const tokens: number[] = []
    for await (const token of generate(model, prompt_ids, { maxTokens: 16 })) tokens.push(token)
    expect(tokens).toEqual(greedy_ids.slice(0, 16))
  }
})
