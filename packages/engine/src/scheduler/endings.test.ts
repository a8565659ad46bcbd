// How requests end that don't run to their last token: refused, cancelled, late, failed; and how the engine does.
import { ReferenceBackend } from '@flashmla/cpu'
import { AbortedError, DeadlineError, QueueFullError } from '@flashmla/spec'
import fc from 'fast-check'
import { expect, it } from 'vitest'
import { Model } from '../model'
import { LlmEngine } from './engine'
import type { StepModel } from './options'
import { engineOf, expectNoLeak, fixture, prompts, tokensOf } from './testing/engine-of'

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

it.each(['step', 'draw'] as const)(
  'computes a failed %s again, and fails cleanly when it fails once more',
  async (which) => {
    const engine = await engineOf(64, 16)
    const model = engine.model as Model
    const prompt = prompts(1)[0]!
    const expected = await tokensOf(engine.submit({ prompt, maxTokens: 8, ignoreEos: true }))
    await engine.dispose()
    let failures = 0
    const flaky =
      <I, R>(work: (inputs: I) => Promise<R>) =>
      async (inputs: I) => {
        const results = await work(inputs)
        if (failures-- > 0) throw new Error('the worker crashed')
        return results
      }
    const crashing: StepModel = Object.assign(Object.create(model), {
      config: model.config,
      pool: model.pool,
      draw: which === 'draw' ? flaky(model.draw!) : undefined,
      step: flaky(model.step.bind(model)),
    })
    const second = new LlmEngine(crashing)
    failures = 1
    expect(await tokensOf(second.submit({ prompt, maxTokens: 8, ignoreEos: true }))).toEqual(expected)
    failures = 2
    await expect(tokensOf(second.submit({ prompt, maxTokens: 8 }))).rejects.toThrow('the worker crashed')
    await second.dispose()
    expectNoLeak(engine)
  },
)

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

it.each([0, 1])('a constraint that allows no token ends only its own request, temperature %i', async (temperature) => {
  const engine = await engineOf(40, 16)
  const stuck = { mask: () => new Uint32Array(10), accept: () => {}, ended: false }
  const failing = tokensOf(engine.submit({ prompt: [1, 2], sampling: { temperature }, constraint: () => stuck }))
  const other = tokensOf(engine.submit({ prompt: [1, 2, 3], maxTokens: 5, ignoreEos: true }))
  await expect(failing).rejects.toThrow('No token can be chosen')
  expect((await other)[0]).toHaveLength(5)
  expectNoLeak(engine)
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

it('waits at its end for the step that the caller asked for', async () => {
  const model = await Model.load(fixture, { backend: new ReferenceBackend(), numBlocks: 40 })
  const slow: StepModel = Object.assign(Object.create(model), {
    config: model.config,
    pool: model.pool,
    draw: undefined,
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
