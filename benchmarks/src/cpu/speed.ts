import type { Contender } from './contender'

export interface Speed {
  readonly contender: string
  readonly weights: 'f32' | 'bf16'
  readonly batch: number
  /** Tokens a second over the whole batch. */
  readonly prefill: number
  readonly decode: number
}

export const promptTokens = 128
const VOCAB = 4096

export interface Runs {
  readonly runs: number
  readonly steps: number
}

/** A prompt of `promptTokens` a sequence, then decode steps. The contenders take turns, so that a slow spell hits all. */
export async function compareSpeed(
  contenders: readonly { readonly contender: Contender; readonly weights: 'f32' | 'bf16'; readonly runs: Runs }[],
  batch: number,
): Promise<Speed[]> {
  const prompts = Array.from({ length: batch }, (_, s) =>
    Array.from({ length: promptTokens }, (_, i) => (i * 977 + s) % VOCAB),
  )
  const entries = []
  for (const { contender, weights, runs } of contenders) {
    const session = await contender.session(batch, promptTokens + runs.steps)
    entries.push({ contender, weights, runs, session, prefill: 0, decode: 0 })
  }
  for (let round = 0; round < Math.max(...contenders.map(({ runs }) => runs.runs)); round++) {
    for (const entry of entries) {
      const { session, runs } = entry
      if (round >= runs.runs) continue
      const start = performance.now()
      await session.prefill(prompts)
      const filled = performance.now()
      for (let step = 0; step < runs.steps; step++)
        await session.decode(Array.from({ length: batch }, (_, s) => (step * 31 + s) % VOCAB))
      const ended = performance.now()
      session.reset()
      entry.prefill = Math.max(entry.prefill, (batch * promptTokens * 1000) / (filled - start))
      entry.decode = Math.max(entry.decode, (batch * runs.steps * 1000) / (ended - filled))
    }
  }
  for (const { session } of entries) await session.dispose()
  return entries.map(({ contender, weights, prefill, decode }) => ({
    contender: contender.name,
    weights,
    batch,
    prefill,
    decode,
  }))
}

/** Milliseconds of one decode step at a context length: the least of `runs`. */
export async function stepCost(contender: Contender, batch: number, length: number, runs: number): Promise<number> {
  const session = await contender.session(batch, length + runs)
  await session.prefill(
    Array.from({ length: batch }, (_, s) => Array.from({ length }, (_, i) => (i * 977 + s) % VOCAB)),
  )
  let best = Infinity
  for (let run = 0; run < runs; run++) {
    const start = performance.now()
    await session.decode(new Array<number>(batch).fill(run))
    best = Math.min(best, performance.now() - start)
  }
  await session.dispose()
  return best
}
