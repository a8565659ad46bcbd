import { f32Format } from '@flashmla/latent'
import { DisposedError, InvalidArgumentError } from '@flashmla/spec'
import { runBackendContract } from '@flashmla/testing'
import { describe, expect, it } from 'vitest'
import { ReferenceBackend } from './reference'

runBackendContract('reference', () => new ReferenceBackend(), { describe, it })

describe('reference: values that lead out of memory', () => {
  const setup = () => {
    const backend = new ReferenceBackend()
    const format = f32Format(3, 1)
    const cache = backend.cache(format, 4, 2)
    const filled = <D extends 'f32' | 'i32'>(dtype: D, shape: number[], value: number) => {
      const tensor = backend.tensor(dtype, shape)
      const size = shape.reduce((a, b) => a * b, 1)
      backend.write(tensor, (dtype === 'f32' ? new Float32Array(size) : new Int32Array(size)).fill(value) as never)
      return tensor
    }
    const slots = (...values: number[]) => {
      const tensor = backend.tensor('i32', [values.length])
      backend.write(tensor, Int32Array.from(values))
      return tensor
    }
    const batch = backend.batch({ maxSequences: 2, maxTokens: 2, maxBlocks: 2 })
    const attend = (seqLens: number[], blocks: number[]) => {
      const [out, lse, q] = [filled('f32', [2, 1, 3], 7), filled('f32', [2, 1], 7), filled('f32', [2, 1, 4], 1)]
      batch.update({
        queryStart: Int32Array.of(0, 1, 2),
        seqLens: Int32Array.from(seqLens),
        blockTable: Int32Array.from(blocks),
        blockTableStride: blocks.length / 2,
      })
      return { out, run: () => backend.attention(out, lse, q, cache, batch, 1) }
    }
    return { backend, cache, filled, slots, attend }
  }

  it('a slot that was never written is refused, before anything is', async () => {
    const { backend, cache, filled, slots, attend } = setup()
    backend.append(cache, filled('f32', [1, 4], 2), slots(2))
    const { out, run } = attend([1, 2], [1, 1])
    expect(run).toThrow('Slot 1 of page 1 is read before it was written.')
    expect(await backend.read(out)).toEqual(new Float32Array(6).fill(7))
    expect(attend([1, 0], [0x7fffffff, 0]).run).toThrow(InvalidArgumentError)
    expect(attend([3, 0], [1, 1]).run).toThrow('Sequence 0 has 3 tokens')
    expect(attend([1, 1], [1, 1]).run).not.toThrow()
  })

  it('an append past the cache writes no row at all', () => {
    const { backend, cache, filled, slots, attend } = setup()
    expect(() => backend.append(cache, filled('f32', [2, 4], 1), slots(0, 8))).toThrow(InvalidArgumentError)
    expect(attend([1, 0], [0, 0]).run).toThrow('before it was written')
  })

  it('ids and positions that pick no row are refused, before anything is written', async () => {
    const { backend, filled, slots } = setup()
    const out = filled('f32', [2, 4], 7)
    const [x, table] = [filled('f32', [3, 4], 1), filled('f32', [3, 2, 2], 1)]
    for (const bad of [-1, 3]) {
      expect(() => backend.gatherRows(out, x, slots(0, bad))).toThrow(`Row ${bad} is not in a table of 3.`)
      expect(() => backend.rotary(out, 0, table, slots(0, bad), true)).toThrow(`Position ${bad}`)
      expect(() => backend.experts(out, out, slots(0, bad), filled('f32', [2], 1), [])).toThrow(InvalidArgumentError)
    }
    expect(await backend.read(out)).toEqual(new Float32Array(8).fill(7))
  })

  it('routes nothing where one of its results is gone', async () => {
    const { backend, filled } = setup()
    const [ids, weights, logits] = [filled('i32', [2, 1], 7), filled('f32', [2, 1], 7), filled('f32', [2, 4], 1)]
    weights.dispose()
    const router = { scoring: 'softmax', method: 'greedy', topK: 1, numGroups: 1, topkGroups: 1 } as const
    const route = () =>
      backend.route(ids as never, weights as never, logits as never, undefined, {
        ...router,
        normalize: false,
        scale: 1,
      })
    expect(route).toThrow(DisposedError)
    expect(await backend.read(ids)).toEqual(Int32Array.of(7, 7))
  })

  it('a backend that was disposed of makes nothing more', () => {
    const backend = new ReferenceBackend()
    backend.dispose()
    expect(() => backend.tensor('f32', [1])).toThrow(DisposedError)
  })
})
