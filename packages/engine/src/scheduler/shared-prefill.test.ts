import { fileURLToPath } from 'node:url'
import { ReferenceBackend } from '@flashmla/cpu'
import { AbortedError } from '@flashmla/spec'
import { expect, it } from 'vitest'
import { Model } from '../model'
import { LlmEngine } from './engine'
import type { EngineOptions } from './options'
import type { GenerationRequest, RequestHandle } from './request'

const fixture = fileURLToPath(new URL('../../fixtures/v3-tiny/', import.meta.url))
const prompt = Array.from({ length: 42 }, (_, i) => (i * 13) % 120)
const request = (seed: number): GenerationRequest => ({
  prompt,
  maxTokens: 6,
  ignoreEos: true,
  sampling: { temperature: 0.9, seed },
})

async function engineOf(options: EngineOptions = {}, numBlocks = 200) {
  const model = await Model.load(fixture, { backend: new ReferenceBackend(), numBlocks, pageSize: 4, maxBatchSize: 40 })
  return new LlmEngine(model, options)
}

async function tokensOf(handle: RequestHandle): Promise<number[]> {
  const tokens: number[] = []
  for await (const event of handle) if (event.type === 'token') tokens.push(event.token)
  return tokens
}

async function oneByOne(count: number): Promise<number[][]> {
  const engine = await engineOf({ prefixCache: false })
  const alone: number[][] = []
  for (let seed = 0; seed < count; seed++) alone.push(await tokensOf(engine.submit(request(seed))))
  return alone
}

it.each([128, 5])('equal prompts that come together are computed once, in chunks of %i', async (prefillChunk) => {
  const engine = await engineOf({ prefillChunk })
  let most = 0
  engine.onStep(() => {
    most = Math.max(most, ...engine.pages().holders)
  })
  const together = await Promise.all(Array.from({ length: 8 }, (_, seed) => tokensOf(engine.submit(request(seed)))))
  expect(together).toEqual(await oneByOne(8))
  expect(most).toBe(8)
  // 40 of the 42 tokens are in whole pages.
  expect(engine.stats()).toMatchObject({ prefill: 42 + 7 * 2, cached: 7 * 40, preemptions: 0 })
  expect(engine.violations()).toEqual([])
})

it('waits only for what is common, and computes the rest of different prompts side by side', async () => {
  const engine = await engineOf()
  let steps = 0
  engine.onStep(({ prefill }) => {
    if (prefill > 0) steps++
  })
  const ends = [0, 1, 2].map((i) => [
    ...prompt.slice(0, 8),
    ...Array.from({ length: 30 }, (_, j) => (i * 50 + j) % 120),
  ])
  await Promise.all(ends.map((each) => tokensOf(engine.submit({ ...request(1), prompt: each }))))
  expect(engine.stats().prefill).toBe(38 + 2 * 30)
  expect(steps).toBe(2)
})

it('keeps the place of one that waits', async () => {
  const engine = await engineOf({ maxBatchSize: 2, prefillChunk: 5 })
  const order: string[] = []
  const run = async (name: string, of: GenerationRequest) => {
    for await (const _ of engine.submit(of)) if (!order.includes(name)) order.push(name)
  }
  await Promise.all([
    run('first', request(0)),
    run('alike', request(1)),
    run('stranger', { ...request(2), prompt: [7, 8, 9] }),
  ])
  expect(order).toEqual(['first', 'alike', 'stranger'])
})

it('shares nothing between tenants, nor without a prefix cache', async () => {
  const apart = await engineOf()
  await Promise.all(['a', 'b'].map((cacheSalt) => tokensOf(apart.submit({ ...request(0), cacheSalt }))))
  expect(apart.stats()).toMatchObject({ prefill: 84, cached: 0 })
  const off = await engineOf({ prefixCache: false })
  let steps = 0
  off.onStep(({ prefill }) => {
    if (prefill > 0) steps++
  })
  await Promise.all([tokensOf(off.submit(request(0))), tokensOf(off.submit(request(1)))])
  expect(off.stats().prefill).toBe(84)
  expect(steps).toBe(1)
})

it('goes on when the one that is waited for is cancelled', async () => {
  const engine = await engineOf({ prefillChunk: 5 })
  const leader = engine.submit(request(0))
  const others = [1, 2, 3].map((seed) => tokensOf(engine.submit(request(seed))))
  let steps = 0
  engine.onStep(() => {
    if (++steps === 2) leader.cancel()
  })
  await expect(tokensOf(leader)).rejects.toThrow(AbortedError)
  expect(await Promise.all(others)).toEqual((await oneByOne(4)).slice(1))
  // What the first had computed was not computed again.
  expect(engine.stats().prefill).toBeLessThan(10 + 42 + 2 * 2 + 5)
  expect(engine.stats().pages.used).toBe(0)
})

it('ends in a pool that holds hardly one of them', async () => {
  const engine = await engineOf({ watermark: 0, prefillChunk: 5 }, 16)
  const together = await Promise.all(Array.from({ length: 8 }, (_, seed) => tokensOf(engine.submit(request(seed)))))
  expect(together).toEqual(await oneByOne(8))
  expect(engine.stats().pages.used).toBe(0)
})
