import { f32Format } from '@flashmla/latent'
import type { RouterOptions, Tensor, WeightSource } from '@flashmla/spec'
import { afterAll, describe, expect, it } from 'vitest'
import { ReferenceBackend } from '../reference'
import type { CpuBackend } from './backend'
import { createCpuBackend } from './create'

const backends = Promise.all([createCpuBackend({ threads: 1 }), createCpuBackend({ threads: 2 })])
const [one, two] = await backends
afterAll(async () => {
  for (const backend of [one, two]) await backend[Symbol.asyncDispose]()
})

const source = (shape: readonly number[], value: (i: number) => number, ready?: Promise<void>): WeightSource => ({
  name: 'test',
  dtype: 'f32',
  shape,
  async read(target) {
    await ready
    const view = new DataView(target.buffer, target.byteOffset, target.byteLength)
    for (let i = 0; i < target.byteLength / 4; i++) view.setFloat32(4 * i, value(i), true)
  },
})

function f32(backend: CpuBackend | ReferenceBackend, shape: readonly number[], value: (i: number) => number) {
  const tensor = backend.tensor('f32', shape)
  backend.write(
    tensor,
    Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => value(i)),
  )
  return tensor
}

describe('the fast backend', () => {
  it('folds leading dimensions where it chooses, and takes none for one row', async () => {
    const options: RouterOptions = {
      scoring: 'softmax',
      method: 'greedy',
      topK: 2,
      numGroups: 1,
      topkGroups: 1,
      normalize: false,
      scale: 1,
    }
    const wave = (i: number) => Math.sin(3 * i)
    for (const lead of [[], [2, 3]]) {
      const results: number[][] = []
      for (const backend of [one, new ReferenceBackend()]) {
        const logits = f32(backend, [...lead, 5], wave)
        const chosen = backend.tensor('i32', [Math.max(1, lead.length * 3)])
        backend.argmax(chosen, logits)
        const [ids, weights] = [backend.tensor('i32', [...lead, 2]), backend.tensor('f32', [...lead, 2])]
        backend.route(ids, weights, logits, undefined, options)
        const experts = []
        for (let e = 0; e < 5; e++) {
          const weight = await backend.weight(source([5, 5], (i) => Math.cos(e + i)))
          experts.push({ gate: weight, up: weight, down: weight })
        }
        const out = f32(backend, [...lead, 5], () => 0)
        backend.experts(out, logits, ids, weights, experts)
        results.push([...(await backend.read(chosen)), ...(await backend.read(ids)), ...(await backend.read(out))])
      }
      expect(results[0]).toHaveLength(results[1]!.length)
      results[0]!.forEach((value, i) => {
        expect(value).toBeCloseTo(results[1]![i]!, 4)
      })
    }
  })

  it('takes in a weight beside recorded operations', async () => {
    let go = () => {}
    const ready = new Promise<void>((resolve) => {
      go = resolve
    })
    const loading = one.weight(source([8, 8], () => 1, ready))
    const [x, y] = [f32(one, [4], () => 1), f32(one, [4], () => 2)]
    one.add(x, y)
    y.dispose()
    go()
    await loading
    expect([...(await one.read(x))]).toEqual([3, 3, 3, 3])
  })

  it('frees a batch only when what was recorded has run', async () => {
    const [tokens, heads] = [2048, 16]
    const cache = two.cache(f32Format(64, 0), tokens / 16 + 1, 16)
    const slots = two.tensor('i32', [tokens])
    two.write(
      slots,
      Int32Array.from({ length: tokens }, (_, i) => 16 + i),
    )
    two.append(
      cache,
      f32(two, [tokens, 64], (i) => Math.sin(i)),
      slots,
    )
    const q = f32(two, [20, heads, 64], (i) => Math.cos(i))
    const attend = async (after: (table: readonly number[]) => void) => {
      const [out, lse] = [two.tensor('f32', [20, heads, 64]), two.tensor('f32', [20, heads])]
      const batch = two.batch({ maxSequences: 1, maxTokens: 20, maxBlocks: tokens / 16 })
      const blockTable = Int32Array.from({ length: tokens / 16 }, (_, i) => i + 1)
      batch.update({
        queryStart: Int32Array.of(0, 20),
        seqLens: Int32Array.of(tokens),
        blockTable,
        blockTableStride: tokens / 16,
      })
      two.attention(out, lse, q, cache, batch, 0.1)
      batch.dispose()
      after([tokens / 16])
      return two.read(out)
    }
    const expected = await attend(() => {})
    for (let again = 0; again < 20; again++) {
      const used: Tensor[] = []
      const actual = await attend((shape) => {
        const taken = two.tensor('i32', shape)
        two.write(taken, new Int32Array(shape[0]!))
        used.push(taken)
      })
      expect(actual).toEqual(expected)
      for (const tensor of used) tensor.dispose()
    }
  })

  it('refuses experts whose weights are gone, that differ in size, or that there are none of', async () => {
    const make = async (inner: number) => ({
      gate: await one.weight(source([inner, 8], () => 1)),
      up: await one.weight(source([inner, 8], () => 1)),
      down: await one.weight(source([8, inner], () => 1)),
    })
    const [a, b, wide] = [await make(8), await make(8), await make(16)]
    const [out, x] = [f32(one, [1, 8], () => 0), f32(one, [1, 8], () => 1)]
    const [ids, weights] = [one.tensor('i32', [1, 1]), f32(one, [1, 1], () => 1)]
    one.write(ids, Int32Array.of(0))
    const experts = [a, b]
    one.experts(out, x, ids, weights, experts)
    const invalid = expect.objectContaining({ code: 'invalid_argument' })
    expect(() => one.experts(out, x, ids, weights, [a, wide])).toThrow(invalid)
    expect(() => one.experts(out, x, ids, weights, [])).toThrow(invalid)
    b.up.dispose()
    expect(() => one.experts(out, x, ids, weights, experts)).toThrow(expect.objectContaining({ code: 'disposed' }))
  })

  it('takes no memory for what it refuses', async () => {
    const backend = await createCpuBackend({ threads: 1, weights: 'q8' })
    const used = () => (backend as unknown as { pool: { heap: { used: number } } }).pool.heap.used
    const [tokens, heads] = [1024, 2]
    const cache = backend.cache(f32Format(64, 0), tokens / 64, 64)
    const batch = backend.batch({ maxSequences: 1, maxTokens: 1, maxBlocks: tokens / 64 })
    batch.update({
      queryStart: Int32Array.of(0, 1),
      seqLens: Int32Array.of(tokens),
      blockTable: Int32Array.from({ length: tokens / 64 }, (_, i) => i),
      blockTableStride: tokens / 64,
    })
    const weight = await backend.weight(source([64, 64], () => 1))
    const kvB = await backend.weight(source([256, 64], () => 1))
    const live = () => f32(backend, [1, heads, 64], () => 1)
    const [out, q, lse, rows] = [live(), live(), f32(backend, [1, heads], () => 0), f32(backend, [2, 64], () => 1)]
    const [ids, weights] = [backend.tensor('i32', [2, 1]), f32(backend, [2, 1], () => 1)]
    const [wide, narrow] = [f32(backend, [1, 256], () => 0), f32(backend, [1, 64], () => 0)]
    const experts = [{ gate: weight, up: weight, down: weight }]
    backend.experts(rows, rows, ids, weights, experts)
    await backend.read(rows)
    const [gone, goneOut, goneWeight] = [
      f32(backend, [2, 64], () => 1),
      live(),
      await backend.weight(source([256, 64], () => 1)),
    ]
    for (const resource of [gone, goneOut, goneWeight]) resource.dispose()
    const disposed = expect.objectContaining({ code: 'disposed' })
    const calls = [
      () => backend.attention(goneOut, lse, q, cache, batch, 1),
      () => backend.naiveAttention(out, goneOut, kvB, cache, batch, 1),
      () => backend.naiveAttention(out, q, goneWeight, cache, batch, 1),
      () => backend.linear(wide, narrow, goneWeight),
      () => backend.experts(rows, gone, ids, weights, experts),
      () => backend.experts(gone, rows, ids, weights, experts),
    ]
    for (const call of calls) {
      expect(call).toThrow(disposed)
      const before = used()
      for (let again = 0; again < 50; again++) expect(call).toThrow(disposed)
      expect(used() - before, String(call)).toBe(0)
    }
    await backend[Symbol.asyncDispose]()
  })

  it('waits for the end of its threads, whoever asked first', async () => {
    const backend = await createCpuBackend({ threads: 2 })
    let ended = false
    void backend[Symbol.asyncDispose]().then(() => {
      ended = true
    })
    await backend[Symbol.asyncDispose]()
    expect(ended).toBe(true)
  })
})
