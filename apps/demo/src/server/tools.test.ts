import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { ChatTemplate, LlmEngine, loadTokenizer } from '@flashmla/engine'
import { modelDirectory } from '@flashmla/tiny-mla'
import { generateText, stepCountIs, streamText, tool } from 'ai'
import OpenAI from 'openai'
import { afterEach, describe, expect, it } from 'vitest'
import { z } from 'zod'
import { ScriptedModel } from './testing/scripted-model'
import { pagesLeaked, startTestServer, type TestServer } from './testing/start'

const list =
  '{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}\n{% endfor %}{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}'
const hermesTemplate = `${list}{# answers in <tool_call> #}assistant:`
const deepseekTemplate = `${list}{# <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜> with \`\`\`json #}assistant:`

const hermes =
  'I will look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call>\n<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
const deepseek =
  '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Oslo", "days": 2}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'

const tools: OpenAI.ChatCompletionTool[] = [
  {
    type: 'function',
    function: {
      name: 'weather',
      description: 'The weather of a city.',
      parameters: {
        type: 'object',
        properties: { city: { enum: ['Oslo', 'Rome'] }, days: { type: 'integer' } },
        required: ['city', 'days'],
        additionalProperties: false,
      },
    },
  },
  { type: 'function', function: { name: 'time', parameters: { type: 'object', properties: {} } } },
]
const messages = [{ role: 'user' as const, content: 'How is the weather?' }]

let server: TestServer
afterEach(async () => {
  expect(await pagesLeaked(server.engine)).toBe(0)
  await server.close(0)
})

/** A server whose model says `script` to everything; without one, the stub that says what it likes. */
async function start(template: string, script?: string) {
  const tokenizer = await loadTokenizer(modelDirectory)
  const engine =
    script === undefined
      ? undefined
      : new LlmEngine(new ScriptedModel(tokenizer.encode(script, { add_special_tokens: false }).ids))
  server = await startTestServer({
    chat: new ChatTemplate(template),
    model: { id: 'stub', created: 1, backend: '', maxPositions: 1024, latentBytesPerToken: 1, mhaBytesPerToken: 1 },
    ...(engine ? { engine } : {}),
  })
  return new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'none', maxRetries: 0 })
}

const called = (message: OpenAI.ChatCompletionMessage) =>
  (message.tool_calls ?? []).map((call) =>
    call.type === 'function' ? [call.function.name, JSON.parse(call.function.arguments)] : [],
  )
const request = { model: 'stub', messages, tools, temperature: 0, max_tokens: 400 }

describe('the openai client', () => {
  it.each([
    { name: 'Hermes', template: hermesTemplate, script: hermes, content: 'I will look.\n', calls: 2 },
    { name: 'DeepSeek', template: deepseekTemplate, script: deepseek, content: null, calls: 1 },
  ])('reads the calls that a $name model writes, streamed and not', async ({ template, script, content, calls }) => {
    const client = await start(template, script)
    const expected = [
      ['weather', { city: 'Oslo', days: 2 }],
      ['time', {}],
    ].slice(0, calls)
    const { choices } = await client.chat.completions.create(request)
    expect(choices[0]!.finish_reason).toBe('tool_calls')
    expect(choices[0]!.message.content).toBe(content)
    expect(called(choices[0]!.message)).toEqual(expected)
    expect(new Set(choices[0]!.message.tool_calls!.map(({ id }) => id)).size).toBe(calls)
    // The client's own assembly of the chunks.
    const streamed = await client.chat.completions.stream(request).finalChatCompletion()
    expect(called(streamed.choices[0]!.message)).toEqual(expected)
    expect(streamed.choices[0]!.finish_reason).toBe('tool_calls')
    expect(streamed.choices[0]!.message.content ?? '').toBe(content ?? '')
  })

  it('leaves the text alone where no tool may be called, and tells one call where one is asked for', async () => {
    const client = await start(hermesTemplate, hermes)
    const { tools: _, ...plain } = request
    for (const body of [plain, { ...request, tool_choice: 'none' as const }]) {
      const { choices } = await client.chat.completions.create(body)
      expect(choices[0]!.finish_reason).toBe('stop')
      expect(choices[0]!.message.content).toBe(hermes)
      expect(choices[0]!.message.tool_calls).toBeUndefined()
    }
    const { choices } = await client.chat.completions.create({ ...request, parallel_tool_calls: false })
    expect(called(choices[0]!.message)).toEqual([['weather', { city: 'Oslo', days: 2 }]])
  })

  it.each([
    ['Hermes', hermesTemplate],
    ['DeepSeek', deepseekTemplate],
    ['no', '{{ messages[0].content }}'],
  ])('forces a call by grammar, whatever the model would rather say: %s template', async (_, template) => {
    const client = await start(template)
    const forced = { ...request, temperature: 1, seed: 4 }
    const named = await client.chat.completions.create({
      ...forced,
      tool_choice: { type: 'function', function: { name: 'weather' } },
    })
    expect(named.choices[0]!.finish_reason).toBe('tool_calls')
    const [[name, args]] = called(named.choices[0]!.message) as [[string, { city: string; days: number }]]
    expect([name, ['Oslo', 'Rome'].includes(args.city), Number.isInteger(args.days)]).toEqual(['weather', true, true])
    const { choices } = await client.chat.completions
      .stream({ ...forced, tool_choice: 'required' })
      .finalChatCompletion()
    expect(choices[0]!.finish_reason).toBe('tool_calls')
    expect(['weather', 'time']).toContain(called(choices[0]!.message)[0]![0])
  })

  it('refuses what can not be followed', async () => {
    const client = await start(hermesTemplate)
    const status = (body: object) =>
      client.chat.completions.create({ ...request, ...body }).then(
        () => 200,
        (error) => [error.status, error.param],
      )
    const named = (name: string) => ({ tool_choice: { type: 'function', function: { name } } })
    expect(await status(named('other'))).toEqual([400, 'tool_choice'])
    expect(await status({ tools: undefined, tool_choice: 'required' })).toEqual([400, 'tool_choice'])
    expect(await status({ tool_choice: 'required', response_format: { type: 'json_object' } })).toEqual([
      400,
      'tool_choice',
    ])
    expect(await status({ tools: [{ type: 'function', function: { name: 'no good' } }] })).toEqual([
      400,
      'tools.0.function.name',
    ])
  })

  it('takes back the calls of an earlier answer and what the tools said', async () => {
    const client = await start(hermesTemplate, 'It rains.')
    const { choices } = await client.chat.completions.create({
      ...request,
      messages: [
        ...messages,
        {
          role: 'assistant',
          content: null,
          tool_calls: [{ id: 'c1', type: 'function', function: { name: 'weather', arguments: '{"city":"Oslo"}' } }],
        },
        { role: 'tool', tool_call_id: 'c1', content: 'rain' },
      ],
    })
    expect(choices[0]!.message).toMatchObject({ content: 'It rains.' })
    expect(choices[0]!.finish_reason).toBe('stop')
  })
})

describe('the AI SDK', () => {
  const model = () => createOpenAICompatible({ name: 'flashmla', baseURL: `${server.url}/v1` })('stub')
  const asked: unknown[] = []
  const weather = tool({
    description: 'The weather of a city.',
    inputSchema: z.object({ city: z.string(), days: z.number().int() }),
    execute: async (input) => {
      asked.push(input)
      return 'rain'
    },
  })

  it('runs the tools that a model calls, and those that it is made to call', async () => {
    await start(deepseekTemplate, deepseek)
    const { toolCalls, finishReason } = await generateText({
      model: model(),
      prompt: 'Weather?',
      tools: { weather },
      stopWhen: stepCountIs(1),
    })
    expect(finishReason).toBe('tool-calls')
    expect(toolCalls.map(({ toolName, input }) => [toolName, input])).toEqual([['weather', { city: 'Oslo', days: 2 }]])
    const stream = streamText({ model: model(), prompt: 'Weather?', tools: { weather }, stopWhen: stepCountIs(1) })
    expect((await stream.toolCalls).map(({ toolName }) => toolName)).toEqual(['weather'])
    expect(asked).toEqual([
      { city: 'Oslo', days: 2 },
      { city: 'Oslo', days: 2 },
    ])
  })
})
