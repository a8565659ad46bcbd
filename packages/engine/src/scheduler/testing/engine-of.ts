import { fileURLToPath } from 'node:url'
import { ReferenceBackend } from '@flashmla/cpu'
import { expect } from 'vitest'
import { Model } from '../../model'
import { LlmEngine } from '../engine'
import type { EngineOptions } from '../options'
import type { RequestHandle } from '../request'

export const fixture = fileURLToPath(new URL('../../../fixtures/v3-tiny/', import.meta.url))

/** A model whose pool is this small, and whose page is this large, with the engine over it. */
export async function engineOf(numBlocks: number, pageSize: number, options: EngineOptions = {}) {
  const model = await Model.load(fixture, { backend: new ReferenceBackend(), numBlocks, pageSize, maxBatchSize: 40 })
  return new LlmEngine(model, options)
}

/** Tokens of each sample. Fails when the request does. */
export async function tokensOf(handle: RequestHandle): Promise<number[][]> {
  const samples: number[][] = []
  for await (const event of handle) {
    samples[event.index] ??= []
    if (event.type === 'token') samples[event.index]!.push(event.token)
  }
  return samples
}

/** No page is held but by the prefix cache, and none at all once that is cleared. */
export function expectNoLeak(engine: LlmEngine) {
  expect(engine.violations()).toEqual([])
  expect(engine.stats().pages.used).toBe(0)
  engine.clearCache()
  expect(engine.model.pool.numFree).toBe(engine.model.pool.numBlocks)
}

/** Distinct prompts, the odd ones with a common beginning. */
export function prompts(count: number): number[][] {
  return Array.from({ length: count }, (_, i) => [
    ...(i % 2 ? Array.from({ length: 20 }, (_, j) => (j * 7) % 120) : []),
    ...Array.from({ length: 3 + ((i * 5) % 17) }, (_, j) => (i * 31 + j * 13) % 120),
  ])
}
