import { bf16Format, f32Format } from '@flashmla/latent'
import type { Backend, CacheFormat } from '@flashmla/spec'

export interface AttentionSpeed {
  readonly format: string
  readonly heads: number
  readonly batch: number
  readonly length: number
  readonly milliseconds: number
  readonly gflops: number
  readonly gbytes: number
}

export const formats: readonly CacheFormat[] = [f32Format(512, 64), bf16Format(512, 64)]
const pageSize = 64

/**
 * Absorbed decode, one query a sequence: FLOP = 2 · h · batch · length · (576 + 512), bytes = batch · length · bytesPerToken.
 * Sequences share one set of pages where that would not fit in `maxPages`; best of `runs`.
 */
export async function measureAttention(
  backend: Backend,
  format: CacheFormat,
  heads: number,
  batch: number,
  length: number,
  runs: number,
): Promise<AttentionSpeed> {
  const pages = Math.ceil(length / pageSize)
  const cache = backend.cache(format, pages * batch, pageSize)
  const rows = backend.tensor('f32', [pageSize, 576])
  const slots = backend.tensor('i32', [pageSize])
  backend.write(
    rows,
    Float32Array.from({ length: pageSize * 576 }, (_, i) => Math.sin(i * 12.9898) * 0.5),
  )
  for (let page = 0; page < pages * batch; page++) {
    backend.write(
      slots,
      Int32Array.from({ length: pageSize }, (_, i) => page * pageSize + i),
    )
    backend.append(cache, rows, slots)
  }
  const q = backend.tensor('f32', [batch, heads, 576])
  backend.write(
    q,
    Float32Array.from({ length: batch * heads * 576 }, (_, i) => Math.cos(i * 78.233) * 0.1),
  )
  const out = backend.tensor('f32', [batch, heads, 512])
  const lse = backend.tensor('f32', [batch, heads])
  const plan = backend.batch({ maxSequences: batch, maxTokens: batch, maxBlocks: pages })
  plan.update({
    queryStart: Int32Array.from({ length: batch + 1 }, (_, i) => i),
    seqLens: new Int32Array(batch).fill(length),
    blockTable: Int32Array.from({ length: batch * pages }, (_, i) => i),
    blockTableStride: pages,
  })
  await backend.read(lse)
  let best = Infinity
  for (let run = 0; run < runs; run++) {
    const start = performance.now()
    backend.attention(out, lse, q, cache, plan, 0.07)
    await backend.read(lse)
    best = Math.min(best, performance.now() - start)
  }
  for (const resource of [cache, rows, slots, q, out, lse, plan]) resource.dispose()
  return {
    format: format.name,
    heads,
    batch,
    length,
    milliseconds: best,
    gflops: (2 * heads * batch * length * 1088) / best / 1e6,
    gbytes: (batch * length * format.bytesPerToken) / best / 1e6,
  }
}
