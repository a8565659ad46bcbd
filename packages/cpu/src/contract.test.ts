import type { Backend } from '@flashmla/spec'
import { FlashMlaError, UnsupportedError } from '@flashmla/spec'
import { contractCases } from '@flashmla/testing'
import { describe, expect, it } from 'vitest'
import { ReferenceBackend } from './reference'

type Method = keyof Backend
type Change = (backend: ReferenceBackend) => Partial<Backend>

/** The reference, but for some methods. */
function changed(change: Change): Backend {
  const backend = new ReferenceBackend()
  const changes = change(backend)
  return new Proxy(backend as Backend, {
    get: (target, key) => {
      const value = changes[key as Method] ?? target[key as Method]
      return typeof value === 'function' ? value.bind(target) : value
    },
  })
}

/** Runs the cases of a broken reference and gives the names of those that notice. */
async function failures(change: Change): Promise<string[]> {
  const broken = changed(change)
  const failed: string[] = []
  for (const { name, run } of contractCases(() => broken, { pageSizes: [16] })) {
    await run().catch((error: unknown) => {
      expect(FlashMlaError.isInstance(error) && error.code === 'contract', String(error)).toBe(true)
      failed.push(name)
    })
  }
  return failed
}

/** Faults that backends really have, each with the beginnings of the cases that must notice it. */
const faults: readonly [string, Change, readonly string[]][] = [
  [
    'attends one token too many',
    (b) => ({
      attention: (out, lse, q, cache, batch, scale) => {
        const { step } = batch as unknown as { step: { seqLens: Int32Array } }
        const lengths = step.seqLens.slice()
        step.seqLens.forEach((length, s) => {
          if (length % 16) step.seqLens[s]!++
        })
        try {
          b.attention(out, lse, q, cache, batch, scale)
        } finally {
          step.seqLens.set(lengths)
        }
      },
    }),
    ['attention: f32-48, page 16: decode', 'attention: fp8-656, page 16: causal'],
  ],
  [
    'gives a base-2 lse',
    (b) => ({
      attention: (out, lse, q, cache, batch, scale) => {
        b.attention(out, lse, q, cache, batch, scale)
        const data = (lse as unknown as { data: Float32Array }).data
        for (let i = 0; i < data.length; i++) data[i]! /= Math.LN2
      },
    }),
    ['attention: f32-48, page 16: decode'],
  ],
  [
    'takes slot -1 for slot 0',
    (b) => ({
      append: (cache, latent, slots) => {
        b.append(cache, latent, slots)
        const data = (slots as unknown as { data: Int32Array }).data
        const last = data.lastIndexOf(-1)
        if (last < 0) return
        const row = b.view(latent, [1, latent.shape[1]!], last * latent.shape[1]!)
        const slot = b.tensor('i32', [1])
        b.write(slot, Int32Array.of(cache.pageSize))
        b.append(cache, row, slot)
      },
    }),
    ['cache: bf16-576: append to slot -1'],
  ],
  [
    'copies whole blocks',
    (b) => ({ copyBlock: (cache, from, to, slots) => b.copyBlock(cache, from, to, slots ? cache.pageSize : 0) }),
    ['cache: f32-48: copyBlock', 'cache: fp8-584: copyBlock'],
  ],
  [
    'turns half-split pairs as interleaved ones',
    (b) => ({ rotary: (x, start, table, positions) => b.rotary(x, start, table, positions, true) }),
    ['operations: rotary, half-split'],
  ],
  [
    'overwrites what the experts should add to',
    (b) => ({
      experts: (out, x, ids, weights, experts) => {
        b.write(out, new Float32Array(out.shape[0]! * out.shape[1]!))
        b.experts(out, x, ids, weights, experts)
      },
    }),
    ['experts: 1 tokens', 'experts: 13 tokens'],
  ],
  [
    'leaves the bias out of the choice',
    (b) => ({
      route: (ids, weights, logits, _bias, options) => b.route(ids, weights, logits, undefined, options),
    }),
    ['experts: route by noaux_tc'],
  ],
  [
    'ignores the offset of a write',
    (b) => ({ write: (target, data) => b.write(target, data, 0) }),
    ['memory: write at'],
  ],
]

describe('the contract notices a backend that', () => {
  it.each(faults)('%s', async (_, change, noticing) => {
    const failed = await failures(change)
    for (const start of noticing) expect(failed.filter((name) => name.startsWith(start))).not.toEqual([])
  })
})

describe('a declared gap', () => {
  const gaps = [{ reason: 'no copies', tests: ['cache: f32-48: copyBlock'] }]
  const runAll = async (copyBlock?: Backend['copyBlock']) => {
    const backend = changed(() => (copyBlock ? { copyBlock } : {}))
    for (const { gap, run } of contractCases(() => backend, { gaps })) if (gap !== undefined) await run()
  }

  it('is kept by refusing it', async () => {
    await runAll(() => {
      throw new UnsupportedError('There is no such kernel.', 'Use another format.')
    })
  })

  it('is an error once the backend can do it', async () => {
    await expect(runAll()).rejects.toThrow('declared as a gap (no copies)')
  })

  it('is not kept by wrong results', async () => {
    const result = runAll(() => undefined)
    await expect(result).rejects.toMatchObject({ code: 'contract', message: expect.not.stringContaining('gap') })
  })
})
