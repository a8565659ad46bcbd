import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { crashingCpuModel } from './testing/cpu-model'
import { soak } from './testing/soak'
import { pagesLeaked, startTestServer, type TestServer } from './testing/start'

describe('fuzzed bodies', () => {
  let server: TestServer
  beforeAll(async () => {
    server = await startTestServer({ limits: { maxTokens: 8 } })
  })
  afterAll(async () => {
    expect(await pagesLeaked(server.engine)).toBe(0)
    await server.close(0)
  })
  const fields = [
    'prompt messages model temperature top_p n stop seed max_tokens stream stream_options logit_bias logprobs top_logprobs',
    'response_format tools tool_choice echo suffix best_of presence_penalty priority speculate user top_k min_p ignore_eos',
  ].flatMap((line) => line.split(' '))
  const odd = fc.oneof(
    fc.jsonValue({ maxDepth: 2 }),
    fc.constantFrom(
      1,
      0,
      -1,
      1e308,
      '',
      'x',
      null,
      true,
      [],
      {},
      [[]],
      [1],
      [-1],
      [1e9],
      { 5: 1 },
      { 99999: 1 },
      '\u0000',
      '\ud800',
    ),
    fc.constantFrom({ type: 'json_object' }, { type: 'json_schema', json_schema: { schema: { $ref: '#' } } }, [
      { role: 'user', content: [{ type: 'text', text: 'x' }] },
    ]),
  )
  const body = fc
    .dictionary(fc.constantFrom(...fields), odd, { maxKeys: 6 })
    .map((extra) => ({ prompt: 'a', messages: [{ role: 'user', content: 'a' }], max_tokens: 2, ...extra }))
  const path = fc.constantFrom('/v1/completions', '/v1/chat/completions', '/v1/embeddings')

  it('never give a 500, and every refusal has the shape of an error', async () => {
    await fc.assert(
      fc.asyncProperty(
        path,
        fc.oneof({ weight: 5, arbitrary: body }, { weight: 1, arbitrary: fc.string() }),
        async (where, what) => {
          const response = await server.post(where, typeof what === 'string' ? what : JSON.stringify(what))
          const text = await response.text()
          expect(response.status, text).toBeLessThan(500)
          expect(text).not.toContain('internal_error')
          if (response.status >= 400) expect(JSON.parse(text).error.message).toBeTypeOf('string')
        },
      ),
      { numRuns: 400 },
    )
  })

  it.each(['[]', '""', '', '{', 'null', '{"prompt":{"__proto__":1}}', '['.repeat(100_000)])(
    '%.30s is a 400',
    async (text) => {
      expect((await server.post('/v1/completions', text)).status).toBe(400)
    },
  )

  it('a schema too deep to be followed is a 400', async () => {
    const schema = `${'{"items":'.repeat(50_000)}{}${'}'.repeat(50_000)}`
    const format = `{"type":"json_schema","json_schema":{"schema":${schema}}}`
    const response = await server.post('/v1/completions', `{"prompt":"x","response_format":${format}}`)
    expect([response.status, (await response.json()).error.type]).toEqual([400, 'invalid_request_error'])
  })
})

const requests = Number(process.env.SOAK_REQUESTS ?? 800)
const soaked = process.env.SOAK_BACKEND === 'cpu' ? { model: crashingCpuModel } : {}

it('a soak ends with every request answered, no page lost and no fault', {
  timeout: 40_000 + requests * 100,
}, async () => {
  const report = await soak({ requests, concurrency: 40, seed: 11, ...soaked })
  if (requests > 800) console.log(JSON.stringify(report))
  expect(report.faults).toEqual([])
  expect(report.leakedPages).toBe(0)
  // Grows by no more than the noise of the runtime, however many requests there were.
  const [early, , late] = report.memory
  expect(late!.heap - early!.heap).toBeLessThan(16 << 20)
  expect(report.preemptions).toBeGreaterThan(0)
  expect(report.crashes).toBeGreaterThan(0)
  expect(Object.values(report.outcomes).reduce((a, b) => a + b)).toBe(requests)
  for (const kind of ['200', 'stream', '400', '413', '429', 'disconnected'])
    expect(report.outcomes[kind], kind).toBeGreaterThan(0)
})
