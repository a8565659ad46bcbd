import { createCpuBackend } from '@flashmla/cpu'
import { LlmEngine, Model, type RequestHandle } from '@flashmla/engine'
import type { Backend } from '@flashmla/spec'
import { modelDirectory } from '@flashmla/tiny-mla'
import { expect, it } from 'vitest'

async function tokensOf(handle: RequestHandle): Promise<number[]> {
  const tokens: number[] = []
  for await (const event of handle) if (event.type === 'token') tokens.push(event.token)
  return tokens
}

const model = async (backend: Backend, numBlocks: number) =>
  Model.load(modelDirectory, { backend, pageSize: 16, numBlocks, maxBatchSize: 32, maxBatchTokens: 256 })

it('on the fast CPU backend too, a request gives the same tokens alone, among 24 and preempted', async () => {
  const backend = await createCpuBackend({ threads: 2 })
  const requests = Array.from({ length: 24 }, (_, i) => ({
    prompt: Array.from({ length: 3 + ((i * 11) % 60) }, (_, j) => 300 + (((i % 8) * 31 + j * 13) % 3000)),
    maxTokens: 16,
    ignoreEos: true,
    sampling: { temperature: i % 3 ? 0.9 : 0, seed: i },
  }))
  const roomy = await model(backend, 300)
  const single = new LlmEngine(roomy, { prefixCache: false })
  const alone: number[][] = []
  for (const request of requests) alone.push(await tokensOf(single.submit(request)))
  await single.dispose()
  const together = async (engine: LlmEngine) => {
    expect(await Promise.all(requests.map((request) => tokensOf(engine.submit(request))))).toEqual(alone)
    await engine.dispose()
    return engine.stats()
  }
  expect((await together(new LlmEngine(roomy))).cached).toBeGreaterThan(0)
  const tight = await model(backend, 16)
  expect((await together(new LlmEngine(tight, { watermark: 0 }))).preemptions).toBeGreaterThan(0)
  for (const each of [roomy, tight]) each.dispose()
  backend.dispose()
})
