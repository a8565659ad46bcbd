import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateObject, generateText, streamText } from 'ai'
import OpenAI, { type APIError } from 'openai'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { z } from 'zod'
import { pagesLeaked, startTestServer, type TestServer } from './testing/start'

let server: TestServer
let client: OpenAI
beforeAll(async () => {
  server = await startTestServer()
  client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'none', maxRetries: 0 })
})
afterAll(async () => {
  expect(await pagesLeaked(server.engine)).toBe(0)
  await server.close(0)
})

const messages = [{ role: 'user' as const, content: 'Tell me of the sea.' }]
const schema = {
  type: 'object',
  properties: { name: { type: 'string', maxLength: 12 }, legs: { type: 'integer' } },
  required: ['name', 'legs'],
  additionalProperties: false,
}

describe('the openai client', () => {
  it('completes, streamed and not, to the same text', async () => {
    const request = { model: 'stub', prompt: 'The whale', max_tokens: 20, temperature: 0.9, seed: 5 }
    const whole = await client.completions.create(request)
    expect(whole.choices[0]).toMatchObject({ index: 0, finish_reason: 'length', logprobs: null })
    expect(whole.usage).toMatchObject({ completion_tokens: 20 })
    let text = ''
    let chunks = 0
    for await (const chunk of await client.completions.create({ ...request, stream: true })) {
      text += chunk.choices[0]!.text
      chunks++
    }
    expect(text).toBe(whole.choices[0]!.text)
    expect(text.length).toBeGreaterThan(0)
    expect(chunks).toBe(21)
  })

  it('chats with n, usage and log-probabilities', async () => {
    const answer = await client.chat.completions.create({
      model: 'stub',
      messages,
      n: 3,
      max_completion_tokens: 6,
      logprobs: true,
      top_logprobs: 2,
      seed: 1,
    })
    expect(answer.choices.map(({ index }) => index)).toEqual([0, 1, 2])
    for (const { message, logprobs, finish_reason } of answer.choices) {
      expect(finish_reason).toBe('length')
      expect(logprobs!.content).toHaveLength(6)
      expect(logprobs!.content!.map(({ token }) => token).join('')).toBe(message.content)
      for (const { logprob, top_logprobs } of logprobs!.content!) {
        expect(top_logprobs).toHaveLength(2)
        expect(logprob).toBeLessThanOrEqual(top_logprobs[0]!.logprob)
      }
    }
    expect(answer.usage!.completion_tokens).toBe(18)
  })

  it('streams a chat with usage at its end', async () => {
    const stream = await client.chat.completions.create({
      model: 'stub',
      messages,
      max_tokens: 8,
      stream: true,
      stream_options: { include_usage: true },
    })
    let role: string | undefined
    let text = ''
    let reason: string | null = null
    let total: number | undefined
    for await (const { choices, usage } of stream) {
      role ??= choices[0]?.delta.role
      text += choices[0]?.delta.content ?? ''
      reason = choices[0]?.finish_reason ?? reason
      total = usage?.completion_tokens ?? total
    }
    expect({ role, reason, total }).toEqual({ role: 'assistant', reason: 'length', total: 8 })
    expect(text).not.toBe('')
  })

  it('stops before a stop string, and obeys a logit bias', async () => {
    const request = { model: 'stub', prompt: 'The whale', max_tokens: 30, temperature: 0 }
    const { choices } = await client.completions.create(request)
    const text = choices[0]!.text
    const stop = text.slice(9, 14)
    const stopped = await client.completions.create({ ...request, stop })
    expect(stopped.choices[0]).toMatchObject({ text: text.slice(0, text.indexOf(stop)), finish_reason: 'stop' })
    const biased = await client.completions.create({ ...request, max_tokens: 3, logit_bias: { 311: 100 }, logprobs: 1 })
    expect(new Set(biased.choices[0]!.logprobs!.tokens).size).toBe(1)
  })

  it('answers in the JSON of a schema, whatever the model would rather say', async () => {
    const answer = await client.chat.completions.create({
      model: 'stub',
      messages,
      max_tokens: 200,
      temperature: 2,
      seed: 3,
      response_format: { type: 'json_schema', json_schema: { name: 'animal', strict: true, schema } },
    })
    expect(answer.choices[0]!.finish_reason).toBe('stop')
    const value = JSON.parse(answer.choices[0]!.message.content!)
    expect(Object.keys(value)).toEqual(['name', 'legs'])
    expect(value.legs).toBeTypeOf('number')
  })

  it('gives log-probabilities that are numbers, of tokens that a schema forbids too', async () => {
    const forced = { model: 'stub', max_tokens: 3, response_format: { type: 'json_object' as const } }
    const chat = await client.chat.completions.create({ ...forced, messages, logprobs: true, top_logprobs: 20 })
    const told = chat.choices[0]!.logprobs!.content!.flatMap(({ top_logprobs }) => top_logprobs)
    const text = await client.completions.create({ ...forced, prompt: 'x', logprobs: 5 })
    const values = text.choices[0]!.logprobs!.top_logprobs!.flatMap((top) => Object.values(top))
    expect(
      told
        .map(({ logprob }) => logprob)
        .concat(values)
        .filter((value) => !Number.isFinite(value)),
    ).toEqual([])
  })

  it('echoes a prompt as it was given, and refuses its log-probabilities', async () => {
    const prompt = '\ufeffThe whale<|end_of_text|> and'
    const { choices } = await client.completions.create({ model: 'stub', prompt, max_tokens: 0, echo: true })
    expect(choices[0]!.text).toBe(prompt)
    await expect(
      client.completions.create({ model: 'stub', prompt, max_tokens: 0, echo: true, logprobs: 1 }),
    ).rejects.toMatchObject({ status: 400, param: 'logprobs' })
  })

  it('takes several prompts, token ids, and echoes', async () => {
    const { choices } = await client.completions.create({
      model: 'stub',
      prompt: ['One', 'Two'],
      n: 2,
      max_tokens: 2,
      echo: true,
    })
    expect(choices.map(({ index }) => index)).toEqual([0, 1, 2, 3])
    expect(choices.map(({ text }) => text.slice(0, 3))).toEqual(['One', 'One', 'Two', 'Two'])
    const ids = await client.completions.create({ model: 'stub', prompt: [500, 501], max_tokens: 2 })
    expect(ids.usage!.prompt_tokens).toBe(2)
    const unsaid = await client.completions.create({ model: 'stub', prompt: [500, 501] })
    expect(unsaid.usage!.completion_tokens).toBe(16)
  })

  it('lists the model and shows errors as its own kinds', async () => {
    expect((await client.models.list()).data.map(({ id }) => id)).toEqual(['stub'])
    expect(await client.models.retrieve('stub')).toMatchObject({ object: 'model' })
    const error = (promise: Promise<unknown>) =>
      promise.then(
        () => undefined,
        (e: APIError) => [e.status, e.code, e.param],
      )
    expect(await error(client.models.retrieve('gpt'))).toEqual([404, 'model_not_found', 'model'])
    expect(await error(client.embeddings.create({ model: 'stub', input: 'x' }))).toEqual([400, 'unsupported', null])
    expect(await error(client.completions.create({ model: 'stub', prompt: 'x', temperature: 9 }))).toEqual([
      400,
      'invalid_value',
      'temperature',
    ])
    expect(await error(client.completions.create({ model: 'stub', prompt: 'x '.repeat(2000), max_tokens: 1 }))).toEqual(
      [400, 'context_length_exceeded', 'prompt'],
    )
    await expect(client.completions.create({ model: 'stub' } as never)).rejects.toThrow('prompt: expected a string')
    const badSchema = {
      type: 'json_schema' as const,
      json_schema: { name: 'x', schema: { type: 'string', pattern: 'a' } },
    }
    expect(
      await error(client.chat.completions.create({ model: 'stub', messages, response_format: badSchema })),
    ).toEqual([400, 'unsupported', null])
  })
})

describe('the AI SDK', () => {
  const model = () =>
    createOpenAICompatible({
      name: 'flashmla',
      baseURL: `${server.url}/v1`,
      supportsStructuredOutputs: true,
      includeUsage: true,
    })('stub')

  it('generates and streams text', async () => {
    const { text, usage } = await generateText({ model: model(), prompt: 'The sea', maxOutputTokens: 10, seed: 2 })
    expect(usage.outputTokens).toBe(10)
    const stream = streamText({ model: model(), prompt: 'The sea', maxOutputTokens: 10, seed: 2 })
    let streamed = ''
    for await (const piece of stream.textStream) streamed += piece
    expect(streamed).toBe(text)
    expect((await stream.usage).outputTokens).toBe(10)
  })

  it('generates an object of a zod schema', async () => {
    const { object } = await generateObject({
      model: model(),
      schema: z.object({ legs: z.array(z.boolean()).min(1) }),
      prompt: 'How many?',
      seed: 1,
      maxOutputTokens: 400,
    }).catch((error) => {
      throw new Error(`${error.message} ${error.text}`)
    })
    expect(object.legs[0]).toBeTypeOf('boolean')
  })
})
