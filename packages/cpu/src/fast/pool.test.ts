import { f32Format } from '@flashmla/latent'
import { expect, it } from 'vitest'
import { createCpuBackend } from './create'

/** Absorbed attention over three pages: what it gives, read `lists` times. */
async function attend(threads: number, spin: number, lists: number): Promise<Float32Array[]> {
  const backend = await createCpuBackend({ threads, spin })
  const cache = backend.cache(f32Format(64, 16), 3, 64)
  const rows = backend.tensor('f32', [192, 80])
  const slots = backend.tensor('i32', [192])
  backend.write(
    rows,
    Float32Array.from({ length: 192 * 80 }, (_, i) => Math.sin(i)),
  )
  backend.write(
    slots,
    Int32Array.from({ length: 192 }, (_, i) => i),
  )
  backend.append(cache, rows, slots)
  const q = backend.tensor('f32', [2, 8, 80])
  const out = backend.tensor('f32', [2, 8, 64])
  const lse = backend.tensor('f32', [2, 8])
  const plan = backend.batch({ maxSequences: 2, maxTokens: 2, maxBlocks: 3 })
  const results: Float32Array[] = []
  for (let list = 0; list < lists; list++) {
    plan.update({
      queryStart: Int32Array.of(0, 1, 2),
      seqLens: Int32Array.of(150, 61),
      blockTable: Int32Array.of(0, 1, 2, 2, 1, 0),
      blockTableStride: 3,
    })
    backend.write(
      q,
      Float32Array.from({ length: 2 * 8 * 80 }, (_, i) => Math.cos(i)),
    )
    backend.attention(out, lse, q, cache, plan, 0.1)
    results.push(await backend.read(out))
    // Workers go to sleep between lists, not only within them.
    if (list % 8 === 0) await new Promise((resolve) => setTimeout(resolve, 0))
  }
  await backend[Symbol.asyncDispose]()
  return results
}

it('threads that sleep at once, or soon, finish every list with the same bits', async () => {
  const [expected] = await attend(1, 0, 1)
  for (const [threads, spin] of [
    [2, 0],
    [2, 100],
    [2, 1000],
    [3, 0],
    [4, 100],
  ] as const)
    for (const actual of await attend(threads, spin, 100)) expect(actual).toEqual(expected)
})

it('a backend that is disposed with operations recorded ends its threads', async () => {
  const backend = await createCpuBackend({ threads: 3, spin: 0 })
  const x = backend.tensor('f32', [4096, 64])
  for (let k = 0; k < 10; k++) backend.add(x, x)
  await backend[Symbol.asyncDispose]()
  expect(() => backend.add(x, x)).toThrow(expect.objectContaining({ code: 'disposed' }))
})
