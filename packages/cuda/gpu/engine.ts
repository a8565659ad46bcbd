import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { generate, LlmEngine, Model, type SamplingParams, type StepModel } from '@flashmla/engine'
import { createCudaBackend } from '../src/index'
import { backendOf } from './backend'
import type { Case, Machine } from './machine'

const fixtures = ['v2-lite-tiny', 'v2-lite-yarn-tiny', 'v3-tiny', 'v3-yarn-tiny']
const PROMPT_TOKENS = 512
const DECODED_TOKENS = 64

/** A model's folder: beside the bundle, or in the repository that this file or the bundle lies in. */
function folderOf(name: string): string {
  const inRepository = name === 'tiny-mla' ? 'tiny-mla/model' : `engine/fixtures/${name}`
  const places = [`../models/${name}`, `../../${inRepository}`, `../../packages/${inRepository}`]
  const found = places.map((place) => fileURLToPath(new URL(place, import.meta.url))).find((path) => existsSync(path))
  if (!found) throw new Error(`There is no folder of ${name}.`)
  return found
}

async function golden(name: string): Promise<{ ids: Int32Array; logits: Float32Array }> {
  const file = await readFile(join(folderOf(name), 'golden.safetensors'))
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

type Way = readonly [attention: 'absorbed' | 'naive', pageSize: number, chunk: number]
const ways: readonly Way[] = [
  ['absorbed', 1, 150],
  ['absorbed', 16, 7],
  ['absorbed', 64, 64],
  ['naive', 16, 64],
]

/** Logits of rows of a fixture, of which it has two, within 1e-3, over page sizes, chunks and both forms of attention. */
async function checkFixture(
  machine: Machine,
  name: string,
  over: readonly Way[],
  rows: readonly number[],
): Promise<string> {
  const backend = await backendOf(machine)
  const { ids, logits } = await golden(name)
  let most = 0
  for (const [attention, pageSize, chunk] of over) {
    const model = await Model.load(folderOf(name), { backend, attention, pageSize })
    const vocab = model.config.vocabSize
    for (const row of rows) {
      const sequence = model.sequence()
      for (let i = 0; i < 150; i += chunk) {
        const tokens = [...ids.subarray(row * 150 + i, row * 150 + Math.min(i + chunk, 150))]
        const start = (row * 150 + i) * vocab
        const off = worst(await model.forward(sequence, tokens), logits.subarray(start, start + tokens.length * vocab))
        if (!(off < 1e-3)) throw new Error(`${name}, ${attention}, page ${pageSize}, token ${i}: logits off by ${off}`)
        most = Math.max(most, off)
      }
      sequence.free()
    }
    model.dispose()
  }
  return `logits off by ${most.toExponential(1)} at most`
}

interface GoldenText {
  readonly prompt_ids: number[]
  readonly greedy_ids: number[]
  readonly last_logits: number[]
}

/** tiny-mla's greedy tokens of every golden prompt equal the golden ones. */
async function checkTinyMla(machine: Machine, attention: 'exact' | 'fast'): Promise<string> {
  const backend = await backendOf(machine, attention === 'fast' ? { attention } : {})
  const cases: GoldenText[] = JSON.parse(await readFile(join(folderOf('tiny-mla'), 'golden.json'), 'utf8'))
  const cacheFormat = attention === 'fast' ? 'bf16' : 'f32'
  const model = await Model.load(folderOf('tiny-mla'), { backend, cacheFormat })
  let [off, right, total] = [0, 0, 0]
  for (const { prompt_ids, greedy_ids, last_logits } of cases) {
    const sequence = model.sequence()
    const logits = await model.forward(sequence, prompt_ids)
    off = Math.max(off, worst(logits.subarray(-model.config.vocabSize), Float32Array.from(last_logits)))
    sequence.free()
    const tokens: number[] = []
    for await (const token of generate(model, prompt_ids, { maxTokens: greedy_ids.length })) tokens.push(token)
    const same = tokens.findIndex((token, i) => token !== greedy_ids[i])
    right += same < 0 ? tokens.length : same
    total += Math.min(greedy_ids.length, tokens.length)
  }
  model.dispose()
  const found = `${right} of ${total} tokens before the first other one, last logits off by ${off.toExponential(1)}`
  if (attention === 'exact' && (right < total || !(off < 1e-3))) throw new Error(found)
  return found
}

/** tiny-mla on every device of the machine at once, each by a backend of its own: the golden tokens of one prompt. */
async function checkEveryDevice({ context: { driver } }: Machine): Promise<string> {
  const cases: GoldenText[] = JSON.parse(await readFile(join(folderOf('tiny-mla'), 'golden.json'), 'utf8'))
  const { prompt_ids, greedy_ids } = cases[0]!
  const answer = async (device: number) => {
    const backend = await createCudaBackend({ device, driver })
    try {
      const model = await Model.load(folderOf('tiny-mla'), { backend, numBlocks: 32 })
      const tokens: number[] = []
      for await (const token of generate(model, prompt_ids, { maxTokens: greedy_ids.length })) tokens.push(token)
      model.dispose()
      return tokens
    } finally {
      backend.dispose()
    }
  }
  const answers = await Promise.all(Array.from({ length: driver.deviceCount }, (_, device) => answer(device)))
  const wrong = answers.findIndex((tokens) => String(tokens) !== String(greedy_ids.slice(0, tokens.length)))
  if (wrong >= 0) throw new Error(`Device ${wrong} generates ${answers[wrong]}, not ${greedy_ids}.`)
  return `${answers[0]!.length} golden tokens on each of ${answers.length}`
}

/** Tokens that the device draws equal those that the host draws from its logits, for every kind of cut. */
async function checkDrawn(machine: Machine): Promise<string> {
  const model = await Model.load(folderOf('v3-tiny'), { backend: await backendOf(machine), numBlocks: 32 })
  if (!model.draw) throw new Error('The backend does not draw.')
  const own = { config: model.config, pool: model.pool, step: model.step.bind(model), draw: undefined }
  const onHost: StepModel = Object.assign(Object.create(model), own)
  const samplings: readonly SamplingParams[] = [
    {},
    { temperature: 1, seed: 3 },
    { temperature: 0.7, topP: 0.9, seed: 4 },
    { temperature: 1.5, topK: 40, minP: 0.01, seed: 5 },
  ]
  const answers = async (over: StepModel) => {
    const engine = new LlmEngine(over)
    const handles = samplings.map((sampling, i) =>
      engine.submit({ prompt: [2 + i, 9, 4, 30 + i], maxTokens: 10, ignoreEos: true, sampling }),
    )
    const tokens = await Promise.all(
      handles.map(async (handle) => {
        const answer: number[] = []
        for await (const event of handle) if (event.type === 'token') answer.push(event.token)
        return answer
      }),
    )
    await engine.dispose()
    return tokens
  }
  const [drawn, sampled] = [await answers(model), await answers(onHost)]
  model.dispose()
  if (JSON.stringify(drawn) !== JSON.stringify(sampled))
    throw new Error(`The device draws ${drawn}, the host ${sampled}.`)
  return `${drawn.flat().length} tokens as the host draws them`
}

const drawn: Case = ['engine: tokens drawn on the device', checkDrawn]

/** Tokens a second of tiny-mla: a prompt of 512, and 64 decoded tokens at batch 1 and 16, medians of 5. */
async function timeTinyMla(machine: Machine, attention: 'exact' | 'fast', graphs = true): Promise<string> {
  const backend = await backendOf(machine, {
    ...(attention === 'fast' ? { attention } : {}),
    ...(graphs ? {} : { graphs }),
  })
  const cacheFormat = attention === 'fast' ? 'bf16' : 'f32'
  const model = await Model.load(folderOf('tiny-mla'), { backend, numBlocks: 256, cacheFormat })
  const prompt = Array.from({ length: PROMPT_TOKENS }, (_, i) => 2 + ((i * 7919) % 4000))
  const median = async (work: () => Promise<number>) => {
    const rates: number[] = []
    for (let i = 0; i < 6; i++) rates.push(await work())
    return rates
      .slice(1)
      .sort((a, b) => a - b)[2]!
      .toFixed(0)
  }
  const prefill = await median(async () => {
    const sequence = model.sequence()
    const start = performance.now()
    await model.step([{ sequence, tokens: prompt, logits: 'last' }])
    const seconds = (performance.now() - start) / 1e3
    sequence.free()
    return PROMPT_TOKENS / seconds
  })
  const decode = (batch: number) =>
    median(async () => {
      const sequences = Array.from({ length: batch }, () => model.sequence())
      for (const sequence of sequences) await model.step([{ sequence, tokens: prompt.slice(0, 128), logits: 'last' }])
      const start = performance.now()
      for (let i = 0; i < DECODED_TOKENS; i++)
        await model.step(sequences.map((sequence) => ({ sequence, tokens: [2 + i], logits: 'last' })))
      const seconds = (performance.now() - start) / 1e3
      for (const sequence of sequences) sequence.free()
      return (batch * DECODED_TOKENS) / seconds
    })
  const found = `prefill ${prefill}, decode at batch 1 ${await decode(1)}, at batch 16 ${await decode(16)} tokens/s`
  model.dispose()
  return found
}

/** What is little work of them: one row of each of two fixtures, once in each form of attention, and some tokens. */
export const fewLogits: readonly Case[] = [
  drawn,
  ...['v2-lite-yarn-tiny', 'v3-tiny'].flatMap((name) =>
    (
      [
        ['absorbed', 16, 50],
        ['naive', 64, 150],
      ] as const
    ).map(
      (way): Case => [`engine: ${name}, ${way[0]} attention`, (machine) => checkFixture(machine, name, [way], [1])],
    ),
  ),
]

export const engine: readonly Case[] = [
  drawn,
  ['engine: tiny-mla on every device at once', checkEveryDevice],
  ...fixtures.map((name): Case => [`engine: ${name}`, (machine) => checkFixture(machine, name, ways, [0, 1])]),
  ...(['exact', 'fast'] as const).flatMap((attention): Case[] => [
    [`engine: tiny-mla's golden tokens, ${attention} attention`, (machine) => checkTinyMla(machine, attention)],
    [`engine: tiny-mla's speed, ${attention} attention`, (machine) => timeTinyMla(machine, attention)],
  ]),
  ["engine: tiny-mla's speed, exact attention, no graphs", (machine) => timeTinyMla(machine, 'exact', false)],
]
