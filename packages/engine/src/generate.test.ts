import { fileURLToPath } from 'node:url'
import { ReferenceBackend } from '@flashmla/cpu'
import { AbortedError, InvalidArgumentError } from '@flashmla/spec'
import type { Tokenizer } from '@huggingface/tokenizers'
import { beforeAll, describe, expect, it, vi } from 'vitest'
import { ChatTemplate } from './chat-template'
import type { GenerateTextOptions } from './generate'
import { generate, generateText } from './generate'
import { Vocabulary } from './grammar/vocabulary'
import { Model } from './model'
import { LlmEngine } from './scheduler/engine'
import type { StepModel } from './scheduler/options'
import { streamText } from './scheduler/text'
import { loadTokenizer } from './tokenizer'

const tiny = fileURLToPath(new URL('../../tiny-mla/model/', import.meta.url))
let model: Model
let tokenizer: Tokenizer
beforeAll(async () => {
  model = await Model.load(tiny, { backend: new ReferenceBackend(), pageSize: 16 })
  tokenizer = await loadTokenizer(tiny)
})

async function text(prompt: string, options: GenerateTextOptions, target: StepModel | LlmEngine = model) {
  const events = []
  for await (const event of generateText(target, tokenizer, prompt, { maxTokens: 12, ...options })) events.push(event)
  return { events, text: events.map((event) => event.text).join('') }
}

describe('generate', () => {
  it('gives the same text for the same prompt, with the prefix cache on and off', async () => {
    const prompt = 'It was a dark night upon the sea, and the captain stood upon the deck'
    const engine = new LlmEngine(model, { prefixCache: true })
    const first = await text(prompt, { temperature: 0.8, seed: 5 }, engine)
    const again = await text(prompt, { temperature: 0.8, seed: 5 }, engine)
    expect(again.text).toBe(first.text)
    expect(first.events.at(-1)).toMatchObject({ type: 'finish', cachedTokens: 0 })
    expect(again.events.at(-1)).toMatchObject({ type: 'finish', cachedTokens: 16 })
    await engine.dispose()
    const plain = new LlmEngine(model, { prefixCache: false })
    expect((await text(prompt, { temperature: 0.8, seed: 5 }, plain)).text).toBe(first.text)
    await plain.dispose()
    expect(model.pool.numFree).toBe(model.pool.numBlocks)
  })

  it('runs several calls on one model at a time', async () => {
    const alone = await text('The whale', {})
    const together = await Promise.all(['The whale', 'The sea', 'The whale'].map((prompt) => text(prompt, {})))
    expect(together.map(({ text }) => text)).toEqual([alone.text, (await text('The sea', {})).text, alone.text])
  })

  it('ends before a stop string that several tokens spell', async () => {
    const whole = (await text('The whale', {})).text
    const stop = whole.slice(9, 15)
    expect((await text('The whale', { stop: [stop] })).text).toBe(whole.slice(0, whole.indexOf(stop)))
  })

  it('gives log-probabilities, the chosen token among the likeliest of a greedy choice', async () => {
    const { events } = await text('The whale', { logprobs: 3 })
    for (const event of events) {
      if (event.type !== 'token') continue
      expect(event.top).toHaveLength(3)
      expect(event.top![0]).toEqual({ token: event.token, logprob: event.logprob })
      expect(event.logprob).toBeLessThan(0)
    }
  })

  it('frees its pages when the loop is left, and when the signal fires', async () => {
    for await (const _ of generate(model, [1, 2, 3])) break
    expect(model.pool.numFree).toBe(model.pool.numBlocks)
    const controller = new AbortController()
    const tokens: number[] = []
    await expect(
      (async () => {
        for await (const token of generate(model, [1, 2, 3], { signal: controller.signal, ignoreEos: true })) {
          tokens.push(token)
          controller.abort()
        }
      })(),
    ).rejects.toThrow(AbortedError)
    expect(tokens.length).toBeLessThan(128)
    expect(model.pool.numFree).toBe(model.pool.numBlocks)
  })

  it('waits for the last step of a call that was given up', async () => {
    const expected = await text('The whale', {})
    let running = 0
    let most = 0
    const slow: StepModel = Object.assign(Object.create(model), {
      config: model.config,
      pool: model.pool,
      draw: undefined,
      step: async (inputs: Parameters<Model['step']>[0]) => {
        most = Math.max(most, ++running)
        await new Promise((resolve) => setTimeout(resolve, 5))
        return model.step(inputs).finally(() => running--)
      },
    })
    const controller = new AbortController()
    const given = generate(slow, [1, 2, 3], { signal: controller.signal, ignoreEos: true }).next()
    await vi.waitUntil(() => running > 0, { interval: 1 })
    controller.abort()
    await Promise.all([
      expect(given).rejects.toThrow(AbortedError),
      (async () => {
        await new Promise((resolve) => setImmediate(resolve))
        expect((await text('The whale', {}, slow)).text).toBe(expected.text)
      })(),
    ])
    expect(most).toBe(1)
    expect(model.pool.numFree).toBe(model.pool.numBlocks)
  })

  it('throws an AbortedError when the signal has fired before', async () => {
    await expect(generate(model, [1], { signal: AbortSignal.abort() }).next()).rejects.toThrow(AbortedError)
  })

  it('fills what the context leaves where that is less than 128 tokens', async () => {
    const small = await Model.load(tiny, { backend: new ReferenceBackend(), pageSize: 4, numBlocks: 4 })
    const tokens: number[] = []
    for await (const token of generate(small, [1, 2, 3], { ignoreEos: true })) tokens.push(token)
    expect(tokens).toHaveLength(13)
    await expect(generate(small, Array(16).fill(1)).next()).rejects.toThrow('leaves no room')
    small.dispose()
  })

  it('refuses parameters out of range before it starts', async () => {
    for (const options of [{ topP: 2 }, { temperature: -1 }, { topK: 0.5 }, { maxTokens: -1 }, { logprobs: 99 }])
      await expect(generate(model, [1], options).next(), JSON.stringify(options)).rejects.toThrow(InvalidArgumentError)
    await expect(generate(model, []).next()).rejects.toThrow(InvalidArgumentError)
    await expect(generate(model, [9e9]).next()).rejects.toThrow(InvalidArgumentError)
    const engine = new LlmEngine(model)
    const vocabulary = new Vocabulary(tokenizer, model.config.vocabSize)
    for (const n of [Number.POSITIVE_INFINITY, 2 ** 40, -1])
      expect(() => streamText(engine, vocabulary, { prompt: [1], n })).toThrow(InvalidArgumentError)
    await engine.dispose()
  })
})

describe('ChatTemplate', () => {
  it('renders messages, tools and the end-of-sequence token', () => {
    const template = new ChatTemplate(
      '{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}{{ tools | length }}{% if add_generation_prompt %}<assistant>{% endif %}',
      '</s>',
    )
    expect(template.render([{ role: 'user', content: 'Hi' }], [{}])).toBe('<user>Hi</s>1<assistant>')
  })

  it('has a plain form for base models, and typed errors', async () => {
    const template = await ChatTemplate.load(tiny)
    expect(template.render([{ role: 'user', content: 'Hi' }])).toBe('user: Hi\nassistant:')
    expect(() => new ChatTemplate('{% for %}')).toThrow(InvalidArgumentError)
    const strict = new ChatTemplate("{{ raise_exception('roles must alternate') }}")
    expect(() => strict.render([])).toThrow(/roles must alternate/)
  })
})
