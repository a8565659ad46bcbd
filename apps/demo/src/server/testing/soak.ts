import { request } from 'node:http'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import type { StepModel } from '@flashmla/engine'
import { LlmEngine, uniform } from '@flashmla/engine'
import { pagesLeaked, startTestServer } from './start'
import { StubModel } from './stub-model'

setFlagsFromString('--expose-gc')
const collectGarbage: () => void = runInNewContext('gc')

export interface SoakOptions {
  readonly requests: number
  readonly concurrency: number
  readonly seed: number
  /** The model to serve, told when to crash; by default the stub. */
  readonly model?: (crashes: () => boolean) => Promise<StepModel>
}

export interface SoakReport {
  /** Requests by how they ended: an HTTP status, `stream`, `disconnected`. */
  readonly outcomes: Readonly<Record<string, number>>
  readonly preemptions: number
  readonly crashes: number
  readonly leakedPages: number
  /** After a quarter of the requests, after half of them, and at the end. */
  readonly memory: readonly MemoryUse[]
  /** Answers that a request must never get, such as a 500 with no crash behind it. */
  readonly faults: readonly string[]
}

/** Bytes, after a garbage collection. */
export interface MemoryUse {
  readonly heap: number
  readonly rss: number
}

/**
 * Thousands of requests of every kind against a small pool whose model crashes now and then: good ones, streamed
 * ones, ones that disconnect, malformed bodies, oversize prompts. Every one must end in an answer or a clean error.
 */
export async function soak({ requests, concurrency, seed, model }: SoakOptions): Promise<SoakReport> {
  let crashes = 0
  let steps = 0
  const crash = () => uniform(seed, 7, steps++) < 0.01 && ++crashes > 0
  const engineOptions = { maxQueued: 24, watermark: 0 }
  const served = (await model?.(crash)) ?? new StubModel({ numBlocks: 48, crashes: crash })
  const server = await startTestServer({
    engine: new LlmEngine(served, engineOptions),
    limits: { maxBodyBytes: 20_000, maxConcurrent: 1000 },
  })
  const { engine, url } = server
  const outcomes: Record<string, number> = {}
  const faults: string[] = []
  const memory: MemoryUse[] = []
  let next = 0
  const worker = async () => {
    for (let id = next++; id < requests; id = next++) {
      if (id === Math.floor(requests / 4) || id === Math.floor(requests / 2)) memory.push(memoryUse())
      const random = (k: number) => uniform(seed, id, k)
      const plan = planRequest(random)
      const outcome = await send(url, plan.body, plan.disconnectMs)
      outcomes[outcome.kind] = (outcomes[outcome.kind] ?? 0) + 1
      if (outcome.kind === '500' && !outcome.text.includes('internal_error')) faults.push(outcome.text)
      if (outcome.kind === '500' && crashes === 0) faults.push(`500 without a crash: ${outcome.text}`)
      if (!plan.valid && !['400', '413', 'disconnected'].includes(outcome.kind))
        faults.push(`${outcome.kind} for ${plan.body.slice(0, 80)}`)
      // As a client would, though not for as long as Retry-After asks.
      if (outcome.kind === '429') await new Promise((resolve) => setTimeout(resolve, 30))
      if (outcome.kind === 'broken') faults.push(`broken answer: ${outcome.text.slice(-200)}`)
    }
  }
  await Promise.all(Array.from({ length: concurrency }, worker))
  const { preemptions } = engine.stats()
  await settled(engine)
  const leakedPages = await pagesLeaked(engine)
  memory.push(memoryUse())
  await server.close(0)
  return { outcomes, preemptions, crashes, leakedPages, memory, faults }
}

async function settled(engine: LlmEngine): Promise<void> {
  for (let i = 0; i < 500 && engine.stats().pages.used > 0; i++) await new Promise((resolve) => setTimeout(resolve, 10))
}

function memoryUse(): MemoryUse {
  collectGarbage()
  const { heapUsed, rss } = process.memoryUsage()
  return { heap: heapUsed, rss }
}

function planRequest(random: (k: number) => number) {
  const kind = random(0)
  const disconnectMs = random(1) < 0.2 ? random(2) * 30 : undefined
  const prompt = 'call me Ishmael some years ago never mind how long '.repeat(1 + Math.floor(random(3) * 5))
  const good = {
    prompt: prompt.slice(0, 10 + Math.floor(random(4) * prompt.length)),
    max_tokens: 1 + Math.floor(random(5) * 60),
    n: 1 + Math.floor(random(6) * 3),
    stream: random(7) < 0.5,
    seed: Math.floor(random(8) * 1000),
    speculate: random(9) < 0.3 ? 4 : 0,
    ...(random(10) < 0.1 ? { response_format: { type: 'json_object' } } : {}),
  }
  if (kind < 0.8) return { body: JSON.stringify(good), valid: true, disconnectMs }
  if (kind < 0.85)
    return { body: JSON.stringify(good).slice(0, Math.floor(random(11) * 40)), valid: false, disconnectMs }
  if (kind < 0.9) return { body: JSON.stringify({ ...good, prompt: 'x '.repeat(5000) }), valid: false, disconnectMs }
  if (kind < 0.95) return { body: JSON.stringify({ ...good, prompt: 'x'.repeat(30_000) }), valid: false, disconnectMs }
  return { body: JSON.stringify({ ...good, temperature: 'hot', n: -1 }), valid: false, disconnectMs }
}

/** One request over a connection of its own, cut after `disconnectMs`. Never rejects. */
function send(url: string, body: string, disconnectMs: number | undefined): Promise<{ kind: string; text: string }> {
  return new Promise((resolve) => {
    let cut = false
    const call = request(
      `${url}/v1/completions`,
      { method: 'POST', headers: { 'Content-Type': 'application/json' } },
      (response) => {
        let text = ''
        response.setEncoding('utf8')
        response.on('data', (piece) => {
          text += piece
        })
        response.on('close', () => {
          if (cut) return resolve({ kind: 'disconnected', text })
          const streamed = response.headers['content-type']?.startsWith('text/event-stream')
          if (!streamed) return resolve({ kind: String(response.statusCode), text })
          const clean = text.includes('data: [DONE]') || text.includes('"error":{')
          resolve({ kind: clean ? 'stream' : 'broken', text })
        })
        response.on('error', () => {})
      },
    )
    call.on('error', (error) => resolve({ kind: cut ? 'disconnected' : 'broken', text: error.message }))
    call.end(body)
    if (disconnectMs !== undefined)
      setTimeout(() => {
        cut = true
        call.destroy()
        resolve({ kind: 'disconnected', text: '' })
      }, disconnectMs)
  })
}
