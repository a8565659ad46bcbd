import { fileURLToPath } from 'node:url'
import { Model } from '@flashmla/engine'
import { describe, expect, it } from 'vitest'
import { createCpuBackend } from './create'
import type { ThreadPool } from './pool'

const tiny = fileURLToPath(new URL('../../../tiny-mla/model/', import.meta.url))
const prompt = (seed: number, length: number) => Array.from({ length }, (_, i) => (i * 977 + seed * 31) % 4096)

/** Last logits of prompts of these lengths, together in one step, and of two decode steps after them. */
async function logitsOf(threads: number, lengths: readonly number[], weights: 'f32' | 'bf16' | 'q8' = 'bf16') {
  const backend = await createCpuBackend({ threads, weights, spin: 1000 })
  const model = await Model.load(tiny, { backend, pageSize: 64, numBlocks: 40, maxBatchTokens: 1024 })
  const sequences = lengths.map(() => model.sequence())
  const steps: Float32Array[][] = []
  for (const tokens of [(s: number) => prompt(s, lengths[s]!), () => [7], () => [9]])
    steps.push(
      await model.step(sequences.map((sequence, s) => ({ sequence, tokens: tokens(s), logits: 'last' as const }))),
    )
  model.dispose()
  await backend[Symbol.asyncDispose]()
  return steps
}

describe('logits are the same to the last bit', () => {
  it.each(['f32', 'bf16', 'q8'] as const)('for every number of threads, %s weights', async (weights) => {
    // 300 tokens are attended to in two splits, 40 in one.
    const lengths = [300, 40, 3]
    const expected = await logitsOf(1, lengths, weights)
    for (const threads of [2, 3]) expect(await logitsOf(threads, lengths, weights)).toEqual(expected)
  })

  it('alone and in a batch', async () => {
    const together = await logitsOf(2, [40, 90, 40, 5, 17])
    for (const [s, length] of [40, 90].entries()) {
      const backend = await createCpuBackend({ threads: 2, spin: 1000 })
      const model = await Model.load(tiny, { backend, pageSize: 64, numBlocks: 4 })
      const sequence = model.sequence()
      for (const [step, tokens] of [prompt(s, length), [7], [9]].entries()) {
        const [logits] = await model.step([{ sequence, tokens, logits: 'last' }])
        expect(logits).toEqual(together[step]![s])
      }
      await backend[Symbol.asyncDispose]()
    }
  })
})

it('decoding takes no more memory after its first step', async () => {
  const backend = await createCpuBackend({ threads: 2, weights: 'q8', spin: 1000 })
  const { heap } = (backend as unknown as { pool: ThreadPool }).pool
  const model = await Model.load(tiny, { backend, pageSize: 16, numBlocks: 32 })
  const sequence = model.sequence()
  await model.forward(sequence, prompt(0, 300))
  await model.forward(sequence, [1])
  const before = heap.used
  for (let i = 0; i < 40; i++) await model.forward(sequence, [i])
  expect(heap.used).toBe(before)
  await backend[Symbol.asyncDispose]()
})

it.each([
  ['f32', 4],
  ['bf16', 2],
  ['f16', 4],
] as const)('a %s weight is read into the place where it stays, of %i bytes a value', async (dtype, stored) => {
  const backend = await createCpuBackend({ threads: 1 })
  const { heap } = (backend as unknown as { pool: ThreadPool }).pool
  const before = heap.used
  const bytes = 512 * 1024 * (dtype === 'f32' ? 4 : 2)
  let given: Uint8Array | undefined
  await backend.weight({
    name: 'w',
    dtype,
    shape: [512, 1024],
    read: async (target) => {
      given = target
    },
  })
  expect(given!.buffer).toBe(heap.memory.buffer)
  expect(given!.byteLength).toBe(bytes)
  // Its values, the eight rows through which panels are packed, and a descriptor.
  expect(heap.used - before).toBeLessThanOrEqual(512 * 1024 * stored + 8 * 1024 * stored + 64)
  await backend[Symbol.asyncDispose]()
})
