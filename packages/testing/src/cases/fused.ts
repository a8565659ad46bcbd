import { bf16Format, f32Format } from '@flashmla/latent'
import type { Backend } from '@flashmla/spec'
import { angles } from '../angles'
import type { Case } from '../case'
import { assertSame, ContractError } from '../compare'
import * as oracle from '../oracle/dense'
import { Random } from '../random'
import type { Workspace } from '../workspace'

type Fused = 'addLinear' | 'linears' | 'absorbQueries' | 'appendLatents'

/** Several operations in one; a backend without it has nothing to keep. */
const fused = (operation: Fused, name: string, run: (w: Workspace) => Promise<void>): Case => ({
  name: `fused: ${operation}, ${name}`,
  run: async (w) => {
    if (w.backend[operation]) await run(w)
  },
})

/** Rows of one and of many, widths that are no multiple of a vector, and ones that are. */
const shapes = [
  [1, 96, 64],
  [1, 5, 7],
  [3, 33, 30],
  [7, 40, 56],
  [17, 64, 128],
  [70, 130, 96],
] as const

/** The latent parts of pages of one token, by attending to each alone. */
async function valuesOf(
  w: Workspace,
  cache: ReturnType<Backend['cache']>,
  pages: readonly number[],
): Promise<Float32Array> {
  const { kvLoraRank: rank, ropeDim: rope } = cache.format
  const n = pages.length
  const batch = w.keep(w.backend.batch({ maxSequences: n, maxTokens: n, maxBlocks: 1 }))
  batch.update({
    queryStart: Int32Array.from({ length: n + 1 }, (_, s) => s),
    seqLens: new Int32Array(n).fill(1),
    blockTable: Int32Array.from(pages),
    blockTableStride: 1,
  })
  const out = w.poisoned(n, 1, rank)
  const q = w.f32([n, 1, rank + rope], new Float32Array(n * (rank + rope)).fill(0.01))
  w.backend.attention(out, w.f32([n, 1]), q, cache, batch, 1)
  return w.backend.read(out)
}

export const fusedCases: readonly Case[] = [
  ...shapes.map(([n, o, i]) =>
    fused('addLinear', `[${n}, ${i}] by [${o}, ${i}]`, async (w) => {
      const random = new Random(n + o + i)
      const [x, y, weight] = [random.values(n * o), random.values(n * i), random.values(o * i)]
      const sum = w.f32([n, o], x)
      w.backend.addLinear!(sum, w.f32([n, i], y), await w.weight([o, i], weight))
      const product = oracle.linear(y, weight, o, i)
      await w.expectClose(
        'x',
        sum,
        product.map((value, at) => value + x[at]!),
      )
    }),
  ),
  ...shapes.map(([n, o, i]) =>
    fused('linears', `[${n}, ${i}] by [${o}, ${i}] and others, gated and not`, async (w) => {
      const random = new Random(n + o * i)
      const x = random.values(n * i, 2)
      const outputs = [o, 9, 2 * o, 1]
      const matrices = outputs.map((rows) => [random.values(rows * i), random.values(rows * i)] as const)
      const products = []
      for (const [p, [weight, up]] of matrices.entries()) {
        const shape = [outputs[p]!, i]
        const gated = p % 2 === 0 ? { up: await w.weight(shape, up) } : {}
        products.push({ out: w.poisoned(n, outputs[p]!), weight: await w.weight(shape, weight), ...gated })
      }
      w.backend.linears!(w.f32([n, i], x), products)
      for (const [p, [weight, up]] of matrices.entries()) {
        const [plain, other] = [weight, up].map((matrix) => oracle.linear(x, matrix, outputs[p]!, i)) as [
          Float64Array,
          Float64Array,
        ]
        await w.expectClose(`out ${p}`, products[p]!.out, p % 2 === 0 ? oracle.siluMul(plain, other) : plain)
      }
    }),
  ),
  ...[1, 5].map((n) =>
    fused('linears', `[${n}, 64] by one gated product, and by none`, async (w) => {
      const random = new Random(n)
      const [x, gate, up] = [random.values(n * 64, 2), random.values(24 * 64), random.values(24 * 64)]
      const out = w.poisoned(n, 24)
      const rows = w.f32([n, 64], x)
      w.backend.linears!(rows, [])
      w.backend.linears!(rows, [{ out, weight: await w.weight([24, 64], gate), up: await w.weight([24, 64], up) }])
      await w.expectClose('out', out, oracle.siluMul(oracle.linear(x, gate, 24, 64), oracle.linear(x, up, 24, 64)))
    }),
  ),
  ...[
    [1, 1, 4, 4, 1],
    [3, 4, 32, 16, 4],
    [21, 3, 40, 24, 8],
    [5, 2, 7, 9, 3],
  ].flatMap(([n, h, rank, nope, pairs]) =>
    [true, false].map((interleaved) =>
      fused(
        'absorbQueries',
        `[${n}, ${h}, ${nope} + ${2 * pairs!}] to ${rank}, ${interleaved ? 'interleaved' : 'half-split'}`,
        async (w) => {
          const random = new Random(n! * 7 + rank!)
          const [rope, maxPositions] = [2 * pairs!, 11]
          const width = nope! + rope
          const [q, uk] = [random.values(n! * h! * width), random.values(h! * rank! * nope!)]
          const table = angles(maxPositions, pairs!)
          const positions = Array.from({ length: n! }, () => random.below(maxPositions))
          const [queries, out] = [w.f32([n!, h!, width], q), w.poisoned(n!, h!, rank! + rope)]
          const weight = await w.weight([h!, rank!, nope!], uk)
          w.backend.absorbQueries!(out, queries, weight, {
            table: w.f32([maxPositions, pairs!, 2], table),
            positions: w.i32([n!], positions),
            interleaved,
          })
          const columns = (x: ArrayLike<number>, of: number, from: number, to: number) =>
            Array.from({ length: n! * h! }, (_, r) => Array.from(x).slice(r * of + from, r * of + to))
          const latent = columns(
            oracle.headLinear(columns(q, width, 0, nope!).flat(), uk, h!, rank!, nope!),
            rank!,
            0,
            rank!,
          )
          const turned = columns(
            oracle.rotary(q, [n!, h!, width], nope!, table, pairs!, positions, interleaved),
            width,
            nope!,
            width,
          )
          await w.expectClose(
            'out',
            out,
            latent.flatMap((row, r) => [...row, ...turned[r]!]),
          )
          assertSame('q', await w.backend.read(queries), q)
        },
      ),
    ),
  ),
  ...[f32Format(32, 16), f32Format(20, 6), bf16Format(512, 64)].flatMap((format) =>
    [true, false].map((interleaved) =>
      fused(
        'appendLatents',
        `as the operations by themselves, ${format.name}, ${interleaved ? 'interleaved' : 'half-split'}`,
        async (w) => {
          const { backend } = w
          const { kvLoraRank: rank, ropeDim: rope } = format
          const random = new Random(rank)
          const [n, maxPositions] = [5, 9]
          const rows = random.values(n * (rank + rope), 4)
          const norm = w.f32([rank], random.values(rank, 2))
          const table = w.f32([maxPositions, rope / 2, 2], angles(maxPositions, rope / 2))
          const positions = w.i32([n], [3, 0, 8, 8, 1])
          const slots = w.i32([n], [4, 0, -1, 2, 1])
          const [together, apart] = [w.f32([n, rank + rope], rows), w.f32([n, rank + rope], rows)]
          const caches = [w.cache(format, 6, 1), w.cache(format, 6, 1)] as const
          const rotation = { table, positions, interleaved }
          backend.appendLatents!(caches[0], together, { weight: norm, eps: 1e-5 }, rotation, slots)
          const latent = w.poisoned(n, rank)
          backend.rotary(apart, rank, table, positions, interleaved)
          backend.copyColumns(latent, 0, apart, 0, rank)
          backend.rmsNorm(latent, latent, norm, 1e-5)
          backend.copyColumns(apart, 0, latent, 0, rank)
          backend.append(caches[1], apart, slots)
          await w.expectClose('the rows', together, await backend.read(apart))
          const written = [4, 0, 2, 1]
          const [found, expected] = [await valuesOf(w, caches[0], written), await valuesOf(w, caches[1], written)]
          await w.expectClose('the cache', w.f32([written.length, rank], found), expected)
          if (expected.every((value) => value === 0)) throw new ContractError('The cache holds nothing.')
        },
      ),
    ),
  ),
]
