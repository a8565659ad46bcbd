import { fileURLToPath } from 'node:url'
import { ReferenceBackend } from '@flashmla/cpu'
import { AbortedError, DeadlineError, QueueFullError } from '@flashmla/spec'
import fc from 'fast-check'
import { beforeAll, describe, expect, it } from 'vitest'
import { Model } from '../model'
import type { Drafter } from './drafter'
import type { EngineOptions, StepModel } from './engine'
import { LlmEngine } from './engine'
import type { GenerationRequest, RequestHandle } from './request'
import type { StepReport } from './stats'

const fixture = fileURLToPath(new URL('../../fixtures/v3-tiny/', import.meta.url))

/** A model whose pool is this small, and whose page is this large, with the engine over it. */
async function engineOf(numBlocks: number, pageSize: number, options: EngineOptions = {}) {
  const model = await Model.load(fixture, { backend: new ReferenceBackend(), numBlocks, pageSize, maxBatchSize: 40 })
  return new LlmEngine(model, options)
}

/** Tokens of each sample. Fails when the request does. */
async function tokensOf(handle: RequestHandle): Promise<number[][]> {
  const samples: number[][] = []
  for await (const event of handle) {
    samples[event.index] ??= []
    if (event.type === 'token') samples[event.index]!.push(event.token)
  }
  return samples
}

/** No page is held but by the prefix cache, and none at all once that is cleared. */
function expectNoLeak(engine: LlmEngine) {
  expect(engine.violations()).toEqual([])
  expect(engine.stats().pages.used).toBe(0)
  engine.clearCache()
  expect(engine.model.pool.numFree).toBe(engine.model.pool.numBlocks)
}

/** Distinct prompts, the odd ones with a common beginning. */
function prompts(count: number): number[][] {
  return Array.from({ length: count }, (_, i) => [
    ...(i % 2 ? Array.from({ length: 20 }, (_, j) => (j * 7) % 120) : []),
    ...Array.from({ length: 3 + ((i * 5) % 17) }, (_, j) => (i * 31 + j * 13) % 120),
  ])
}

const request = (prompt: number[], i: number): GenerationRequest => ({
  prompt,
  maxTokens: 6 + (i % 9),
  ignoreEos: true,
  sampling: { temperature: i % 3 ? 0.9 : 0, topP: 0.95, seed: i, frequencyPenalty: i % 4 === 0 ? 0.5 : 0 },
})

describe('a request gives the same tokens', () => {
  let alone: number[][][]
  const requests = prompts(32).map(request)
  beforeAll(async () => {
    const engine = await engineOf(64, 16, { prefixCache: false })
    alone = []
    for (const each of requests) alone.push(await tokensOf(engine.submit(each)))
    expectNoLeak(engine)
  })

  it.each<{ name: string; numBlocks: number; pageSize: number; options: EngineOptions; preempts?: boolean }>([
    { name: 'in a batch of 32', numBlocks: 200, pageSize: 16, options: { prefixCache: false } },
    { name: 'with the prefix cache', numBlocks: 200, pageSize: 4, options: {} },
    {
      name: 'in chunks of 5 under a small budget',
      numBlocks: 200,
      pageSize: 16,
      options: { prefillChunk: 5, maxBatchTokens: 24 },
    },
    { name: 'preempted and resumed', numBlocks: 24, pageSize: 4, options: { watermark: 0 }, preempts: true },
    {
      name: 'preempted without a prefix cache',
      numBlocks: 24,
      pageSize: 4,
      options: { prefixCache: false, watermark: 0 },
      preempts: true,
    },
  ])('$name', async ({ numBlocks, pageSize, options, preempts }) => {
    const engine = await engineOf(numBlocks, pageSize, options)
    const together = await Promise.all(requests.map((each) => tokensOf(engine.submit(each))))
    expect(together).toEqual(alone)
    if (preempts) expect(engine.stats().preemptions).toBeGreaterThan(0)
    if (options.prefixCache !== false) expect(engine.stats().cached).toBeGreaterThan(0)
    expectNoLeak(engine)
  })

  it('with speculation, in any mix', async () => {
    const engine = await engineOf(200, 16)
    const together = await Promise.all(
      requests.map((each, i) => tokensOf(engine.submit({ ...each, speculate: i % 5 }))),
    )
    expect(together).toEqual(alone)
    expectNoLeak(engine)
  })
})

it('accepts prompt-lookup guesses on a text that repeats, with the output of plain greedy decoding', async () => {
  const engine = await engineOf(64, 16)
  const prompt = Array.from({ length: 48 }, (_, i) => [5, 9, 33, 70][i % 4]!)
  const plain = await tokensOf(engine.submit({ prompt, maxTokens: 60, ignoreEos: true }))
  const steps = engine.stats().steps
  const guessed = await tokensOf(engine.submit({ prompt, maxTokens: 60, ignoreEos: true, speculate: 4 }))
  expect(guessed).toEqual(plain)
  expect(engine.stats().accepted).toBeGreaterThan(0)
  expect(engine.stats().steps - steps).toBeLessThan(60)
  expectNoLeak(engine)
})

it('n samples share the pages of their prompt and equal n single requests of the same seed', async () => {
  const engine = await engineOf(40, 4)
  const prompt = prompts(2)[1]!
  const sampling = { temperature: 1, seed: 7 }
  let most = 0
  engine.onStep(() => {
    most = Math.max(most, ...engine.pages().holders)
  })
  const [first, second, third] = await tokensOf(
    engine.submit({ prompt, maxTokens: 8, n: 3, sampling, ignoreEos: true }),
  )
  expect(most).toBe(3)
  expect(first).not.toEqual(second)
  expect(second).not.toEqual(third)
  expect(await tokensOf(engine.submit({ prompt, maxTokens: 8, sampling, ignoreEos: true }))).toEqual([first])
  expectNoLeak(engine)
})

it('serves lower priority values first when slots are few', async () => {
  const engine = await engineOf(40, 16, { maxBatchSize: 1 })
  const order: string[] = []
  const run = async (name: string, priority: number) => {
    await tokensOf(engine.submit({ prompt: [1, 2, 3], maxTokens: 3, priority, ignoreEos: true }))
    order.push(name)
  }
  await Promise.all([run('late', 2), run('normal', 1), run('urgent', 0), run('normal 2', 1)])
  expect(order).toEqual(['urgent', 'normal', 'normal 2', 'late'])
})

it('refuses what exceeds the queue, ends what is cancelled or late, and keeps no page of either', async () => {
  const engine = await engineOf(40, 16, { maxQueued: 2 })
  const endless = { prompt: [1, 2, 3], maxTokens: 100, ignoreEos: true }
  const cancelled = engine.submit(endless)
  const late = engine.submit({ ...endless, deadlineMs: 5 })
  expect(() => engine.submit(endless)).toThrow(QueueFullError)
  const seen: number[] = []
  await expect(
    (async () => {
      for await (const event of cancelled) {
        if (event.type === 'token') seen.push(event.token)
        if (seen.length === 3) cancelled.cancel()
      }
    })(),
  ).rejects.toThrow(AbortedError)
  await expect(tokensOf(late)).rejects.toThrow(DeadlineError)
  for await (const _ of engine.submit(endless)) break
  const controller = new AbortController()
  const aborted = tokensOf(engine.submit({ ...endless, signal: controller.signal }))
  controller.abort()
  await expect(aborted).rejects.toThrow(AbortedError)
  await engine.idle()
  expectNoLeak(engine)
})

it('refuses requests that can never be served, with the value that is wrong', async () => {
  const engine = await engineOf(4, 16)
  expect(() => engine.submit({ prompt: [] })).toThrow('The prompt is empty')
  expect(() => engine.submit({ prompt: [99999] })).toThrow('Token 99999')
  expect(() => engine.submit({ prompt: Array(64).fill(1) })).toThrow('no room in a context of 64')
  expect(() => engine.submit({ prompt: [1], maxTokens: 64 })).toThrow('more than the context of 64')
  expect(() => engine.submit({ prompt: [1], n: 0 })).toThrow("n can't be 0")
  expect(() => engine.submit({ prompt: [1], sampling: { topP: 2 } })).toThrow("topP can't be 2")
  expect(engine.stats().queued).toBe(0)
})

it('keeps tenants apart: a salt of its own finds no page of another', async () => {
  const engine = await engineOf(64, 4)
  const prompt = prompts(2)[1]!
  const cached = async (cacheSalt: string) => {
    for await (const event of engine.submit({ prompt, maxTokens: 1, cacheSalt })) {
      if (event.type === 'finish') return event.cachedTokens
    }
  }
  expect(await cached('a')).toBe(0)
  expect(await cached('b')).toBe(0)
  expect(await cached('a')).toBeGreaterThan(0)
})

it('computes a failed step again, and fails cleanly when it fails once more', async () => {
  const engine = await engineOf(64, 16)
  const model = engine.model as Model
  const prompt = prompts(1)[0]!
  const expected = await tokensOf(engine.submit({ prompt, maxTokens: 8, ignoreEos: true }))
  await engine.dispose()
  let failures = 0
  const flaky: StepModel = Object.assign(Object.create(model), {
    config: model.config,
    pool: model.pool,
    step: async (inputs: Parameters<Model['step']>[0]) => {
      const results = await model.step(inputs)
      if (failures-- > 0) throw new Error('the worker crashed')
      return results
    },
  })
  const second = new LlmEngine(flaky)
  failures = 1
  expect(await tokensOf(second.submit({ prompt, maxTokens: 8, ignoreEos: true }))).toEqual(expected)
  failures = 2
  await expect(tokensOf(second.submit({ prompt, maxTokens: 8 }))).rejects.toThrow('the worker crashed')
  await second.dispose()
  expectNoLeak(engine)
})

it('any mix of requests, cancels and a pool of any size ends with every request answered and no page lost', async () => {
  const model = await Model.load(fixture, { backend: new ReferenceBackend(), numBlocks: 12, pageSize: 4 })
  const one = fc.record({
    length: fc.integer({ min: 1, max: 20 }),
    maxTokens: fc.integer({ min: 0, max: 10 }),
    n: fc.integer({ min: 1, max: 3 }),
    priority: fc.integer({ min: 0, max: 2 }),
    speculate: fc.integer({ min: 0, max: 3 }),
    cancelAfter: fc.option(fc.integer({ min: 0, max: 8 }), { nil: undefined }),
  })
  await fc.assert(
    fc.asyncProperty(fc.array(one, { minLength: 1, maxLength: 8 }), fc.boolean(), async (mix, prefixCache) => {
      const engine = new LlmEngine(model, { prefixCache, watermark: 0, prefillChunk: 7 })
      const ends = mix.map(async ({ length, cancelAfter, ...rest }) => {
        const handle = engine.submit({ prompt: Array.from({ length }, (_, j) => j % 5), ...rest, ignoreEos: true })
        let events = 0
        let finished = 0
        try {
          for await (const event of handle) {
            if (event.type === 'finish') finished++
            if (events++ === cancelAfter) handle.cancel()
          }
          return finished === rest.n
        } catch (error) {
          return cancelAfter !== undefined && error instanceof AbortedError
        }
      })
      expect(await Promise.all(ends)).toEqual(mix.map(() => true))
      await engine.idle()
      expectNoLeak(engine)
      await engine.dispose()
    }),
    { numRuns: 30 },
  )
})

it('a branch that comes back takes no page for guesses that the others were promised', async () => {
  const engine = await engineOf(29, 1, { watermark: 0 })
  const together = Array.from({ length: 4 }, (_, seed) =>
    tokensOf(
      engine.submit({
        prompt: Array.from({ length: 6 + seed }, (_, i) => 5 + (i % 2)),
        maxTokens: 10,
        speculate: 6,
        ignoreEos: true,
        // Two tokens that take turns: the drafter finds much to guess.
        sampling: { logitBias: new Map([5, 6].map((token) => [token, 100])), temperature: 1, seed },
      }),
    ),
  )
  expect((await Promise.all(together)).map(([tokens]) => tokens!.length)).toEqual([10, 10, 10, 10])
  expect(engine.stats().preemptions).toBeGreaterThan(0)
  expectNoLeak(engine)
})

it.each([0, 1])('a constraint that allows no token ends only its own request, temperature %i', async (temperature) => {
  const engine = await engineOf(40, 16)
  const stuck = { mask: () => new Uint32Array(10), accept: () => {}, ended: false }
  const failing = tokensOf(engine.submit({ prompt: [1, 2], sampling: { temperature }, constraint: () => stuck }))
  const other = tokensOf(engine.submit({ prompt: [1, 2, 3], maxTokens: 5, ignoreEos: true }))
  await expect(failing).rejects.toThrow('No token can be chosen')
  expect((await other)[0]).toHaveLength(5)
  expectNoLeak(engine)
})

it('counts a prompt of one token, and the last token of a chunked one, as prefill', async () => {
  const engine = await engineOf(40, 16, { prefillChunk: 4 })
  await tokensOf(engine.submit({ prompt: [1], maxTokens: 3, ignoreEos: true }))
  expect(engine.stats().prefill).toBe(1)
  await tokensOf(engine.submit({ prompt: [1, 2, 3, 4, 5], maxTokens: 3, ignoreEos: true }))
  expect(engine.stats().prefill).toBe(6)
})

it('tells nothing after the end, though a listener cancels at a finish', async () => {
  const engine = await engineOf(40, 16)
  for (const maxTokens of [0, 1]) {
    const heard: string[] = []
    await new Promise<void>((resolve) => {
      const running = engine.start(
        { prompt: [1], n: 3, maxTokens, ignoreEos: true },
        {
          event({ type }) {
            heard.push(type)
            if (type === 'finish') running.cancel()
          },
          end() {
            heard.push('end')
            setImmediate(resolve)
          },
        },
      )
    })
    expect(heard).toEqual(maxTokens ? ['token', 'finish', 'end'] : ['finish', 'end'])
  }
  expect(engine.stats().finished).toBe(0)
  expectNoLeak(engine)
})

it('counts a guess as right though the sample ends with it', async () => {
  const engine = await engineOf(40, 16)
  let tokens = 0
  await tokensOf(
    engine.submit({
      prompt: [5, 5, 5, 5],
      sampling: { logitBias: new Map([[5, 100]]) },
      speculate: 2,
      ignoreEos: true,
      shouldStop: () => ++tokens === 2,
    }),
  )
  expect(engine.stats()).toMatchObject({ generated: 2, drafted: 1, accepted: 1 })
})

it.each([0, 2])('ends a request with what its listener throws, of %i tokens', async (maxTokens) => {
  const engine = await engineOf(40, 16)
  const error = await new Promise((resolve) => {
    const event = () => {
      throw new Error('the socket is gone')
    }
    engine.start({ prompt: [1], maxTokens, ignoreEos: true }, { event, end: resolve })
  })
  expect(error).toMatchObject({ message: 'the socket is gone' })
  expectNoLeak(engine)
})

it.each<[string, (tokens: readonly number[], max: number) => unknown]>([
  ['throws', () => JSON.parse('{')],
  ['gives ids past the vocabulary', () => [1e9, 1]],
  ['gives ids that are not whole', () => [0.5, -1, Number.NaN]],
  ['gives no list', () => undefined],
  ['gives more than was asked for', (_, max) => Array(max + 400).fill(5)],
])('a drafter that %s costs its guesses alone', async (_, draft) => {
  const request = { prompt: [5, 9, 5, 9, 5], maxTokens: 12, ignoreEos: true, speculate: 3 }
  const plain = await engineOf(40, 16)
  const expected = await tokensOf(plain.submit({ ...request, speculate: 0 }))
  const engine = await engineOf(40, 16, { drafter: { draft: draft as Drafter['draft'] }, maxAttempts: 1 })
  const both = await Promise.all([request, { ...request, speculate: 0 }].map((each) => tokensOf(engine.submit(each))))
  expect(both).toEqual([expected, expected])
  expectNoLeak(engine)
})

it('a step that is asked for while one runs is that one', async () => {
  const engine = await engineOf(40, 16)
  const request = { prompt: [1, 2, 3], maxTokens: 12, ignoreEos: true }
  const expected = await tokensOf(engine.submit(request))
  const asked: Promise<StepReport>[] = []
  const ask = () => asked.push(engine.step())
  const before = engine.stats()
  const both = [0, 1].map(() => tokensOf(engine.submit({ ...request, shouldStop: () => ask() === 0 })))
  asked.push(engine.step(), engine.step())
  expect(await Promise.all(both)).toEqual([expected, expected])
  expect((await asked[0])!.generated).toBe(2)
  expect(await asked[1]).toBe(await asked[0])
  await Promise.all(asked)
  expect(engine.stats().generated - before.generated).toBe(24)
  expectNoLeak(engine)
})

it('waits at its end for the step that the caller asked for', async () => {
  const model = await Model.load(fixture, { backend: new ReferenceBackend(), numBlocks: 40 })
  const slow: StepModel = Object.assign(Object.create(model), {
    config: model.config,
    pool: model.pool,
    step: async (inputs: Parameters<StepModel['step']>[0]) => {
      await new Promise((resolve) => setTimeout(resolve, 20))
      return model.step(inputs)
    },
  })
  const engine = new LlmEngine(slow)
  const ended = tokensOf(engine.submit({ prompt: [1, 2, 3], maxTokens: 12, ignoreEos: true }))
  const step = engine.step()
  await Promise.resolve() // it has begun
  await Promise.all([expect(ended).rejects.toThrow(AbortedError), engine.dispose()])
  expect(engine.stats().steps).toBe(1)
  await step
  expectNoLeak(engine)
})
