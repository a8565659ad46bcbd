// What requests are answered with, alone and together.
import { beforeAll, describe, expect, it } from 'vitest'
import type { Drafter } from './drafter'
import type { EngineOptions } from './options'
import type { GenerationRequest } from './request'
import type { StepReport } from './stats'
import { engineOf, expectNoLeak, prompts, tokensOf } from './testing/engine-of'

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

it('counts a prompt of one token, and the last token of a chunked one, as prefill', async () => {
  const engine = await engineOf(40, 16, { prefillChunk: 4 })
  await tokensOf(engine.submit({ prompt: [1], maxTokens: 3, ignoreEos: true }))
  expect(engine.stats().prefill).toBe(1)
  await tokensOf(engine.submit({ prompt: [1, 2, 3, 4, 5], maxTokens: 3, ignoreEos: true }))
  expect(engine.stats().prefill).toBe(6)
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
