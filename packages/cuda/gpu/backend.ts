import { bf16Format, f32Format } from '@flashmla/latent'
import { contractCases } from '@flashmla/testing'
import { type CudaBackend, type CudaBackendOptions, createCudaBackend } from '../src/index'
import { values } from './decode'
import type { Case, Machine } from './machine'

/** The machine's backend of these options, opened once. */
export function backendOf(machine: Machine, options: Options = {}) {
  const { context, backends } = machine
  const key = JSON.stringify(options)
  let backend: Promise<CudaBackend> | undefined = backends.get(key)
  if (!backend) {
    backend = createCudaBackend({ device: context.device.ordinal, driver: context.driver, ...options })
    backends.set(key, backend)
  }
  return backend
}

type Options = Pick<CudaBackendOptions, 'weights' | 'attention' | 'graphs'>

/** The contract of @flashmla/testing over a backend with these options, or what of it is wanted. */
function contractOf(
  what: string,
  options: Options,
  wanted = /(?:)/,
  given?: Parameters<typeof contractCases>[1],
): readonly Case[] {
  let machine: Machine | undefined
  return contractCases(() => backendOf(machine!, options), given)
    .filter(({ name }) => wanted.test(name))
    .map(({ name, run }) => [
      `contract, ${what}: ${name}`,
      async (on) => {
        machine = on
        await run()
        return 'kept'
      },
    ])
}

/** The contract with weights in this precision, or what of it is wanted; its test values are exact in both. */
export const contract = (weights: 'f32' | 'bf16', wanted?: RegExp) =>
  contractOf(`${weights} weights`, { weights }, wanted)

/** What of the contract attends to bf16-576 rows, by the decode kernels: queries and probabilities are rounded to bf16. */
export const fastAttention: readonly Case[] = contractOf('fast attention', { attention: 'fast' }, /attention|batch/, {
  formats: [bf16Format(512, 64)],
  tolerance: { abs: 2e-2, rel: 2e-2, l2: 5e-3 },
})

/** A weight of these bf16 words. */
export function bf16Weight(backend: CudaBackend, shape: readonly number[], words: Uint16Array<ArrayBuffer>) {
  const read = async (target: Uint8Array) => target.set(new Uint8Array(words.buffer))
  return backend.weight({ name: `bf16 [${shape}]`, dtype: 'bf16', shape, read })
}

/** Products with bf16 weights of every kind of tile, alone and shared by a cluster, some of their values beside float64. */
async function checkTiles(machine: Machine): Promise<string> {
  const backend = await backendOf(machine)
  let worst = 0
  for (const [n, heads, o, i] of [
    [1, 1, 576, 7168],
    [3, 16, 128, 512],
    [5, 1, 7, 8],
    [17, 1, 2048, 2048],
    [70, 2, 129, 1000],
    [129, 40, 130, 72],
    [200, 1, 9001, 320],
    [300, 1, 5700, 75],
    [600, 1, 576, 4096],
  ] as const) {
    const words = new Uint16Array(new Uint32Array(values(heads * o * i, 7).buffer).map((word) => word >>> 16))
    const weight = await bf16Weight(backend, [heads, o, i], words)
    const rows = values(n * heads * i, 9)
    const [x, out] = [backend.tensor('f32', [n, heads, i]), backend.tensor('f32', [n, heads, o])]
    backend.write(x, rows)
    backend.headLinear(out, x, weight)
    const found = await backend.read(out)
    const value = (at: number) => new Float32Array(Uint32Array.of(words[at]! << 16).buffer)[0]!
    for (let at = 0; at < found.length; at += at % 4999 === 0 ? 97 : 1 + ((at * 7) % 997)) {
      const [r, h, j] = [Math.floor(at / (heads * o)), Math.floor(at / o) % heads, at % o]
      let [sum, size] = [0, 0]
      for (let k = 0; k < i; k++) {
        const product = rows[(r * heads + h) * i + k]! * value((h * o + j) * i + k)
        sum += product
        size += Math.abs(product)
      }
      worst = Math.max(worst, Math.abs(found[at]! - sum) / size)
      if (!(worst < 3e-6)) throw new Error(`${n} x ${heads} x ${o} x ${i}: out[${at}] is ${found[at]}, not ${sum}`)
    }
    for (const resource of [x, out, weight]) resource.dispose()
  }
  return `${worst.toExponential(1)} of the magnitudes apart at most`
}

export const tiles: Case = ['products in tiles', checkTiles]

/** A row with an infinity, and one with a NaN whose bits are all low ones, through every product with bf16 weights; others stay as they are. */
async function checkNotFinite(machine: Machine): Promise<string> {
  const backend = await backendOf(machine)
  const [o, i] = [40, 96]
  const words = Uint16Array.from({ length: o * i }, (_, at) => (Math.floor(at / i) % 2 === 0 ? 0x3f80 : 0xbf80)) // 1, -1, 1, ... by outputs
  const weight = await bf16Weight(backend, [o, i], words)
  const rows = [1, 3, 20, 70, 200]
  for (const n of rows) {
    const [x, out] = [backend.tensor('f32', [n, i]), backend.tensor('f32', [n, o])]
    const given = new Float32Array(n * i).fill(0.5)
    given[5] = Number.POSITIVE_INFINITY
    if (n > 1) new Uint32Array(given.buffer)[i + 7] = 0x7f800001
    if (n > 2) given[2 * i + 95] = Number.NEGATIVE_INFINITY
    backend.write(x, given)
    backend.linear(out, x, weight)
    const found = await backend.read(out)
    const right = [Number.POSITIVE_INFINITY, Number.NaN, Number.NEGATIVE_INFINITY]
    for (const [at, value] of found.entries()) {
      const [r, sign] = [Math.floor(at / o), at % 2 === 0 ? 1 : -1]
      const expected = sign * (right[r] ?? 48)
      if (!Object.is(value, expected)) throw new Error(`${n} rows: out[${r}] is ${value}, not ${expected}`)
    }
    for (const resource of [x, out]) resource.dispose()
  }
  weight.dispose()
  return `as in f32, of ${rows.join(', ')} rows`
}

export const notFinite: Case = ['products of what is not finite', checkNotFinite]

/** Rows at the end of a cache of 10 GB and 2.6 · 10⁹ values attend to the same bits as in a small one. */
async function checkLargeCache(machine: Machine): Promise<string> {
  const backend = await backendOf(machine)
  const [format, pageSize, tokens, heads] = [f32Format(512, 64), 64, 100, 16]
  const latent = backend.tensor('f32', [tokens, 576])
  backend.write(latent, values(tokens * 576, 3))
  const q = backend.tensor('f32', [1, heads, 576])
  backend.write(q, values(heads * 576, 5))
  const attend = async (numBlocks: number, blocks: readonly number[]) => {
    const cache = backend.cache(format, numBlocks, pageSize)
    const slots = backend.tensor('i32', [tokens])
    const slot = (i: number) => blocks[Math.floor(i / pageSize)]! * pageSize + (i % pageSize)
    backend.write(
      slots,
      Int32Array.from({ length: tokens }, (_, i) => slot(i)),
    )
    backend.append(cache, latent, slots)
    backend.copyBlock(cache, blocks[1]!, blocks[2]!, tokens - pageSize)
    const batch = backend.batch({ maxSequences: 1, maxTokens: 1, maxBlocks: 2 })
    const blockTable = Int32Array.of(blocks[0]!, blocks[2]!)
    batch.update({ queryStart: Int32Array.of(0, 1), seqLens: Int32Array.of(tokens), blockTable, blockTableStride: 2 })
    const [out, lse] = [backend.tensor('f32', [1, heads, 512]), backend.tensor('f32', [1, heads])]
    backend.attention(out, lse, q, cache, batch, 0.05)
    const found = await backend.read(out)
    for (const resource of [cache, slots, batch, out, lse]) resource.dispose()
    return found
  }
  const [small, large] = [await attend(3, [0, 1, 2]), await attend(70_000, [69_998, 35_000, 69_999])]
  const wrong = large.findIndex((value, i) => value !== small[i] || value === 0)
  if (wrong >= 0) throw new Error(`out[${wrong}] is ${large[wrong]}, not ${small[wrong]}`)
  for (const tensor of [latent, q]) tensor.dispose()
  return `${(70_000 * pageSize * 576 * 4) / 1e9} GB`
}

export const largeCache: Case = ['a cache past 2^31 values', checkLargeCache]
