import { bf16Format, f32Format } from '@flashmla/latent'
import { type CacheFormat, DRAW_COLUMNS, type Draw, packDraw } from '@flashmla/spec'
import type { CudaBackend } from '../src/index'
import { backendOf, bf16Weight } from './backend'
import type { Case } from './machine'

const ROUNDS = 20

/** Milliseconds of an operation: the median of 5 rounds of 20, the host's share included. */
async function time(backend: CudaBackend, work: () => void): Promise<number> {
  const probe = backend.tensor('f32', [1])
  const times: number[] = []
  for (let i = 0; i < 6; i++) {
    await backend.read(probe)
    const start = performance.now()
    for (let round = 0; round < ROUNDS; round++) work()
    await backend.read(probe)
    times.push((performance.now() - start) / ROUNDS)
  }
  probe.dispose()
  return times.slice(1).sort((a, b) => a - b)[2]!
}

function noise(n: number): Float32Array {
  let state = 17
  return Float32Array.from({ length: n }, () => {
    state = (state * 48271) % 2147483647
    return (state / 2147483647) * 2 - 1
  })
}

/** Products of n rows with a bf16 weight [16384, 7168]: bytes of the weight, and operations, a second. */
async function linearRates(backend: CudaBackend): Promise<string> {
  const [o, i] = [16384, 7168]
  const values = noise(1 << 20)
  const words = new Uint16Array(o * i)
  for (let k = 0; k < words.length; k++) words[k] = 0x3f00 | ((k * 2654435761) >>> 24)
  const weight = await bf16Weight(backend, [o, i], words)
  const found: string[] = []
  for (const n of [1, 4, 16, 64, 512]) {
    const [x, out] = [backend.tensor('f32', [n, i]), backend.tensor('f32', [n, o])]
    for (let at = 0; at < n * i; at += values.length)
      backend.write(x, values.subarray(0, Math.min(values.length, n * i - at)), at)
    const ms = await time(backend, () => backend.linear(out, x, weight))
    found.push(
      `${n} rows ${ms.toFixed(3)} ms ${((o * i * 2) / ms / 1e6).toFixed(0)} GB/s ${((2 * n * o * i) / ms / 1e9).toFixed(1)} TFLOP/s`,
    )
    for (const tensor of [x, out]) tensor.dispose()
  }
  weight.dispose()
  return found.join('; ')
}

/** Attention of 128 heads: decoding of 8 sequences of 4096 tokens, and 256 queries of one. */
async function attentionRates(backend: CudaBackend, format: CacheFormat): Promise<string> {
  const [h, width] = [128, format.kvLoraRank + format.ropeDim]
  const found: string[] = []
  for (const [b, queries, length] of [
    [8, 1, 4096],
    [1, 1, 4096],
    [1, 256, 4096],
  ] as const) {
    const [t, pages] = [b * queries, length / 64]
    const cache = backend.cache(format, b * pages, 64)
    const latent = backend.tensor('f32', [4096, width])
    backend.write(latent, noise(4096 * width))
    const slots = backend.tensor('i32', [4096])
    for (let s = 0; s < b; s++) {
      backend.write(
        slots,
        Int32Array.from({ length: 4096 }, (_, i) => s * length + i),
      )
      backend.append(cache, latent, slots)
    }
    const batch = backend.batch({ maxSequences: b, maxTokens: t, maxBlocks: pages })
    batch.update({
      queryStart: Int32Array.from({ length: b + 1 }, (_, s) => s * queries),
      seqLens: new Int32Array(b).fill(length),
      blockTable: Int32Array.from({ length: b * pages }, (_, i) => i),
      blockTableStride: pages,
    })
    const [q, out] = [backend.tensor('f32', [t, h, width]), backend.tensor('f32', [t, h, format.kvLoraRank])]
    backend.write(q, noise(t * h * width))
    const lse = backend.tensor('f32', [t, h])
    const ms = await time(backend, () => backend.attention(out, lse, q, cache, batch, width ** -0.5))
    const tokens = queries === 1 ? length : length - queries / 2
    const tflops = (2 * t * h * tokens * (width + format.kvLoraRank)) / ms / 1e9
    found.push(`batch ${b}, ${queries} queries ${ms.toFixed(3)} ms ${tflops.toFixed(1)} TFLOP/s`)
    for (const resource of [cache, latent, slots, batch, q, out, lse]) resource.dispose()
  }
  return found.join('; ')
}

const VOCAB = 129_280
const draws: readonly Draw[] = [
  { temperature: 0, topK: 0, topP: 1, minP: 0, random: 0.5 },
  { temperature: 1, topK: 0, topP: 1, minP: 0, random: 0.5 },
  { temperature: 1, topK: 0, topP: 0.95, minP: 0, random: 0.5 },
  { temperature: 1, topK: 50, topP: 0.95, minP: 0, random: 0.5 },
]

/** Tokens drawn from logits like a model's: many about 0, some hundred from 8 to 18. */
async function drawRates(backend: CudaBackend): Promise<string> {
  const uniform = noise(VOCAB)
  const row = uniform.map((x, i) => 3 * (x + uniform[(i * 7 + 1) % VOCAB]!))
  for (let i = 0; i < 200; i++) row[(i * 7919) % VOCAB] = 8 + 5 * (uniform[i]! + 1)
  const found: string[] = []
  for (const n of [1, 64]) {
    const logits = backend.tensor('f32', [n, VOCAB])
    for (let i = 0; i < n; i++) backend.write(logits, row, i * VOCAB)
    const [rows, ids] = [backend.tensor('f32', [n, DRAW_COLUMNS]), backend.tensor('i32', [n])]
    for (const draw of draws) {
      const packed = new Float32Array(n * DRAW_COLUMNS)
      for (let i = 0; i < n; i++) packDraw(packed, i, { ...draw, random: (i + 0.5) / n })
      backend.write(rows, packed)
      const ms = await time(backend, () => backend.sample(ids, logits, rows))
      if ((await backend.read(ids)).includes(-1)) throw new Error(`Left to the host: ${JSON.stringify(draw)}.`)
      const { temperature, topK, topP } = draw
      found.push(`${n} rows, temperature ${temperature}, topK ${topK}, topP ${topP} ${(ms * 1000).toFixed(0)} µs`)
    }
    for (const tensor of [logits, rows, ids]) tensor.dispose()
  }
  return found.join('; ')
}

/** What the operations reach at the sizes of DeepSeek-V3. */
export const rates: readonly Case[] = [
  ['rates: linear, bf16 weight [16384, 7168]', async (machine) => linearRates(await backendOf(machine))],
  [`rates: drawing from ${VOCAB} logits`, async (machine) => drawRates(await backendOf(machine))],
  [
    'rates: exact attention, 4096 tokens, bf16-576',
    async (machine) => attentionRates(await backendOf(machine), bf16Format(512, 64)),
  ],
  [
    'rates: exact attention, 4096 tokens, f32-576',
    async (machine) => attentionRates(await backendOf(machine), f32Format(512, 64)),
  ],
  [
    'rates: fast attention, 4096 tokens, bf16-576',
    async (machine) => attentionRates(await backendOf(machine, { attention: 'fast' }), bf16Format(512, 64)),
  ],
]
