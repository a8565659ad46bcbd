import { createCpuBackend } from '@flashmla/cpu'
import { LlmEngine, Model, type RequestHandle } from '@flashmla/engine'
import { modelDirectory } from '@flashmla/tiny-mla'
import { expect, it } from 'vitest'

async function tokensOf(handle: RequestHandle): Promise<number[]> {
  const tokens: number[] = []
  for await (const event of handle) if (event.type === 'token') tokens.push(event.token)
  return tokens
}

it('on the fast CPU backend too, a request gives the same tokens alone and among 24 with the prefix cache', async () => {
  const backend = await createCpuBackend({ threads: 2 })
  const model = await Model.load(modelDirectory, {
    backend,
    pageSize: 16,
    numBlocks: 300,
    maxBatchSize: 32,
    maxBatchTokens: 256,
  })
  const requests = Array.from({ length: 24 }, (_, i) => ({
    prompt: Array.from({ length: 3 + ((i * 11) % 60) }, (_, j) => 300 + (((i % 8) * 31 + j * 13) % 3000)),
    maxTokens: 16,
    ignoreEos: true,
    sampling: { temperature: i % 3 ? 0.9 : 0, seed: i },
  }))
  const single = new LlmEngine(model, { prefixCache: false })
  const alone: number[][] = []
  for (const request of requests) alone.push(await tokensOf(single.submit(request)))
  await single.dispose()
  const engine = new LlmEngine(model)
  expect(await Promise.all(requests.map((request) => tokensOf(engine.submit(request))))).toEqual(alone)
  expect(engine.stats().cached).toBeGreaterThan(0)
  await engine.dispose()
  model.dispose()
  backend.dispose()
})
