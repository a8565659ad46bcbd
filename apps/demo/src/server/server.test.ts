import { connect } from 'node:net'
import pino from 'pino'
import { afterEach, describe, expect, it } from 'vitest'
import { pagesLeaked, startTestServer, type TestServer } from './testing/start'

let server: TestServer
const start = async (...options: Parameters<typeof startTestServer>) => {
  server = await startTestServer(...options)
  return server
}
afterEach(async () => {
  expect(await pagesLeaked(server.engine)).toBe(0)
  await server.close(0)
})

const long = { prompt: 'The whale', max_tokens: 900, ignore_eos: true }
const until = async (condition: () => boolean) => {
  for (let i = 0; i < 300 && !condition(); i++) await new Promise((resolve) => setTimeout(resolve, 10))
  expect(condition()).toBe(true)
}

it('tells health, readiness, metrics and its own description', async () => {
  const { url, post } = await start()
  await (await post('/v1/completions', { prompt: 'a', max_tokens: 5, ignore_eos: true })).json()
  const get = async (path: string) => (await fetch(url + path)).text()
  expect(JSON.parse(await get('/health'))).toEqual({ status: 'ok' })
  expect(JSON.parse(await get('/ready'))).toEqual({ status: 'ready' })
  const metrics = await get('/metrics')
  for (const line of [
    'flashmla_queued_requests 0',
    'flashmla_running_requests 0',
    'flashmla_prompt_tokens_total 2',
    'flashmla_prefill_tokens_total 2',
    'flashmla_generated_tokens_total 5',
    'flashmla_time_to_first_token_seconds_count 1',
    'flashmla_inter_token_seconds_count 4',
    'flashmla_request_seconds_count 1',
    'flashmla_pages_used 0',
    'flashmla_pages_cached 0',
    'flashmla_pages_free 256',
    'flashmla_prefix_hit_tokens_total 0',
    'flashmla_preemptions_total 0',
    'flashmla_http_requests_total{method="POST",route="/v1/completions",status="200"} 1',
  ])
    expect(metrics).toContain(line)
  const description = JSON.parse(await get('/openapi.json'))
  expect(Object.keys(description.paths).sort()).toEqual([
    '/health',
    '/live',
    '/metrics',
    '/ready',
    '/v1/chat/completions',
    '/v1/completions',
    '/v1/embeddings',
    '/v1/models',
    '/v1/models/{id}',
  ])
  expect(Object.keys(description.paths['/v1/completions'].post.responses)).toEqual(
    expect.arrayContaining(['200', '400', '401', '404', '408', '413', '429', '503']),
  )
  expect(description.components.schemas.CompletionRequest.properties.temperature).toMatchObject({ maximum: 2 })
})

it('times a request of several samples once, from its first token to its last', async () => {
  const { url, post } = await start()
  await (await post('/v1/completions', { prompt: ['a', 'b'], n: 2, max_tokens: 3, ignore_eos: true })).json()
  const metrics = await (await fetch(`${url}/metrics`)).text()
  expect(metrics.match(/(?<=flashmla_)\w+_seconds_count \d+/g)).toEqual([
    'time_to_first_token_seconds_count 1',
    'inter_token_seconds_count 8',
    'request_seconds_count 1',
  ])
})

it('binds to this machine alone unless told otherwise', async () => {
  const { url } = await start()
  expect(new URL(url).hostname).toBe('127.0.0.1')
})

it('asks for a key, keeps the caches of keys apart, and limits what one runs at a time', async () => {
  const { post, url } = await start({ apiKeys: ['one', 'two'], limits: { maxConcurrent: 1 }, stub: { delayMs: 3 } })
  const as = (key: string) => ({ headers: { Authorization: `Bearer ${key}` } })
  const nobody = await post('/v1/completions', long)
  expect([nobody.status, nobody.headers.get('WWW-Authenticate')]).toEqual([401, 'Bearer'])
  expect(await nobody.json()).toMatchObject({ error: { type: 'authentication_error', code: 'invalid_api_key' } })
  for (const key of ['three', 'on', 'onee', '', 'one two'])
    expect((await post('/v1/completions', long, as(key))).status, key).toBe(401)
  expect((await fetch(`${url}/live`)).status).toBe(401)
  const prompt = 'word '.repeat(60)
  const cached = async (key: string) => {
    const answer = await (await post('/v1/completions', { prompt, max_tokens: 1 }, as(key))).json()
    return answer.usage.prompt_tokens_details.cached_tokens
  }
  expect(await cached('one')).toBe(0)
  expect(await cached('two')).toBe(0)
  expect(await cached('one')).toBeGreaterThan(0)
  const controller = new AbortController()
  const running = post('/v1/completions', long, { ...as('one'), signal: controller.signal }).catch(() => {})
  await until(() => server.engine.stats().running === 1)
  const refused = await post('/v1/completions', long, as('one'))
  expect(refused.status).toBe(429)
  expect(refused.headers.get('Retry-After')).toBe('1')
  expect((await post('/v1/completions', { prompt: 'x', max_tokens: 1 }, as('two'))).status).toBe(200)
  controller.abort()
  await running
})

it('refuses bodies that are too large and requests past the queue', async () => {
  const { post } = await start({
    limits: { maxBodyBytes: 2000 },
    engineOptions: { maxQueued: 1, maxBatchSize: 1 },
    stub: { delayMs: 2 },
  })
  expect((await post('/v1/completions', { prompt: 'x'.repeat(3000) })).status).toBe(413)
  const controller = new AbortController()
  const streams = [post('/v1/completions', { ...long, stream: true }, { signal: controller.signal })]
  await until(() => server.engine.stats().running === 1)
  streams.push(post('/v1/completions', { ...long, stream: true }, { signal: controller.signal }))
  await until(() => server.engine.stats().queued === 1)
  const refused = await post('/v1/completions', long)
  expect([refused.status, refused.headers.get('Retry-After')]).toEqual([429, '1'])
  expect(await refused.json()).toMatchObject({ error: { type: 'rate_limit_error', code: 'queue_full' } })
  controller.abort()
  await Promise.allSettled(streams)
})

it('refuses more new tokens than the server gives, and more than fit behind the prompt', async () => {
  const { post } = await start({ limits: { maxTokens: 50 } })
  const refusal = async (body: object, path = '/v1/completions') => {
    const response = await post(path, body)
    const { error } = await response.json()
    return [response.status, error.code, error.param]
  }
  expect(await refusal({ prompt: 'x', max_tokens: 51 })).toEqual([400, null, 'max_tokens'])
  expect(await refusal({ prompt: 'word '.repeat(1000), max_tokens: 50 })).toEqual([
    400,
    'context_length_exceeded',
    'max_tokens',
  ])
  expect(await refusal({ prompt: 'word '.repeat(1100) })).toEqual([400, 'context_length_exceeded', 'prompt'])
  // A chat's own fields are named.
  const chat = (content: string, fields: object) =>
    refusal({ messages: [{ role: 'user', content }], ...fields }, '/v1/chat/completions')
  for (const field of ['max_tokens', 'max_completion_tokens']) {
    expect(await chat('x', { [field]: 51 })).toEqual([400, null, field])
    expect(await chat('word '.repeat(990), { [field]: 50 })).toEqual([400, 'context_length_exceeded', field])
  }
  expect(await chat('x', { max_tokens: 1, max_completion_tokens: 51 })).toEqual([400, null, 'max_completion_tokens'])
  expect(await chat('word '.repeat(1100), {})).toEqual([400, 'context_length_exceeded', 'messages'])
})

describe('frees the pages of a client that vanishes', () => {
  it.each([true, false])('streaming: %s', async (stream) => {
    const lines: string[] = []
    const logger = pino({ level: 'info' }, { write: (line: string) => void lines.push(line) })
    const { post, engine } = await start({ logger, stub: { delayMs: 3 } })
    const controller = new AbortController()
    const gone = post('/v1/completions', { ...long, stream, n: 3 }, { signal: controller.signal })
    gone.then((response) => response.text()).catch(() => {})
    await until(() => engine.stats().running === 3)
    controller.abort()
    await until(() => engine.stats().pages.used === 0)
    await until(() => lines.some((line) => line.includes('"outcome":"gone"')))
    expect(engine.stats().generated).toBeLessThan(2000)
  })
})

it('counts a client that left before its answer as that, not as a failure of the server', async () => {
  const lines: string[] = []
  const logger = pino({ level: 'info' }, { write: (line: string) => void lines.push(line) })
  const { url, post, engine } = await start({ logger, stub: { delayMs: 3 } })
  const controller = new AbortController()
  const gone = post('/v1/completions', long, { signal: controller.signal }).catch(() => {})
  await until(() => engine.stats().running === 1)
  controller.abort()
  await gone
  const socket = connect(Number(new URL(url).port), '127.0.0.1')
  socket.end('POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"prompt"', () => socket.destroy())
  await until(() => lines.filter((line) => line.includes('"answered"')).length === 2)
  const metrics = await (await fetch(`${url}/metrics`)).text()
  expect(metrics.match(/status="\d+"} \d+/g)).toEqual(['status="499"} 2'])
  expect(lines.join()).not.toContain('request failed')
})

it('ends a request at its deadline with a clean error', async () => {
  const { post } = await start({ limits: { timeoutMs: 60 }, stub: { delayMs: 5 } })
  const answer = await post('/v1/completions', long)
  expect(answer.status).toBe(408)
  const streamed = await (await post('/v1/completions', { ...long, stream: true })).text()
  expect(streamed).toContain('"code":"deadline"')
})

it('drains: ends what runs, takes nothing new, then closes', async () => {
  const { post, url, close } = await start({ stub: { delayMs: 2 } })
  const running = post('/v1/completions', { ...long, max_tokens: 60 })
  await until(() => server.engine.stats().running === 1)
  const closed = close(5000)
  const refused = await post('/v1/completions', { prompt: 'x', max_tokens: 1 })
  expect([refused.status, refused.headers.get('Retry-After')]).toEqual([503, '1'])
  expect((await fetch(`${url}/ready`)).status).toBe(503)
  const answer = await (await running).json()
  expect(answer.usage.completion_tokens).toBe(60)
  await closed
  await expect(fetch(`${url}/health`)).rejects.toThrow()
})

it('lets a slow reader have the whole of an answer that ended in time', async () => {
  const { url, close, engine } = await start()
  const body = JSON.stringify({
    messages: [{ role: 'user', content: 'x' }],
    ...{ max_tokens: 400, n: 16, logprobs: true, top_logprobs: 20, ignore_eos: true },
  })
  const socket = connect(Number(new URL(url).port), '127.0.0.1')
  const closed = new Promise((resolve) => socket.once('close', resolve))
  let text = ''
  socket.on('data', (piece) => {
    text += piece.toString('latin1')
  })
  socket.write(`POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: ${body.length}\r\n\r\n${body}`)
  await until(() => engine.stats().running > 0)
  socket.pause()
  const ended = close(10_000)
  await until(() => engine.stats().finished === 1)
  await new Promise((resolve) => setTimeout(resolve, 500))
  socket.resume()
  await Promise.all([closed, ended])
  const length = Number(/content-length: (\d+)/i.exec(text)?.[1])
  expect(text.length - text.indexOf('\r\n\r\n') - 4).toBe(length)
})

it('cancels what still runs when the grace is over, with a clean error', async () => {
  const { post, close } = await start({ stub: { delayMs: 5 } })
  const streamed = post('/v1/completions', { ...long, stream: true }).then((response) => response.text())
  const whole = post('/v1/completions', long)
  await until(() => server.engine.stats().running === 2)
  await close(20)
  expect(await streamed).toContain('"code":"aborted"')
  expect((await whole).status).toBe(503)
})

it('logs what happened but not what was said, unless asked to', async () => {
  const lines: string[] = []
  const logger = pino({ level: 'info' }, { write: (line: string) => void lines.push(line) })
  const { post } = await start({ logger })
  await (await post('/v1/completions', { prompt: 'a secret', max_tokens: 2 })).json()
  await until(() => lines.length >= 2)
  expect(lines.join()).toContain('"generated":2')
  // Nor what is refused, in a query or in a body that does not parse.
  await post('/v1/completions?q=secret', { prompt: 'a secret', temperature: 9 })
  await post('/v1/completions', '{"prompt": "a secret"')
  await until(() => lines.length >= 4)
  expect(lines.join()).not.toContain('secret')
  await server.close(0)

  const told = await start({ logger, logPrompts: true })
  await (await told.post('/v1/completions', { prompt: 'an open word', max_tokens: 2 })).json()
  await until(() => lines.some((line) => line.includes('"request":"an open word"')))
})

it('shows the cache live', async () => {
  const { url } = await start()
  const controller = new AbortController()
  const response = await fetch(`${url}/live`, { signal: controller.signal })
  const { value } = await response.body!.getReader().read()
  const state = JSON.parse(new TextDecoder().decode(value).replace('data: ', ''))
  expect(state.owner).toHaveLength(256)
  expect(state.stats.pages.free).toBe(256)
  controller.abort()
})

it('leaves nothing running for a HEAD of the live view', async () => {
  const { url, engine } = await start()
  const onStep = engine.onStep.bind(engine)
  let listening = 0
  engine.onStep = (listener) => {
    const off = onStep(listener)
    listening++
    return () => {
      listening--
      off()
    }
  }
  const response = await fetch(`${url}/live`, { method: 'HEAD' })
  expect([response.status, response.headers.get('Content-Type')]).toEqual([200, 'text/event-stream'])
  const controller = new AbortController()
  await fetch(`${url}/live`, { signal: controller.signal })
  await until(() => listening > 0)
  controller.abort()
  await until(() => listening === 0)
})
