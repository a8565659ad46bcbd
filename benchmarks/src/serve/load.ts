import type { LlmEngine } from '@flashmla/engine'
import type { PlannedRequest } from './workload'

export interface Percentiles {
  readonly p50: number
  readonly p95: number
  readonly p99: number
}

export interface LoadResult {
  readonly offered: number
  readonly completed: number
  readonly refused: number
  readonly seconds: number
  /** Answer tokens a second. */
  readonly tokensPerSecond: number
  readonly requestsPerSecond: number
  /** Milliseconds. */
  readonly firstToken: Percentiles
  readonly interToken: Percentiles
  readonly preemptions: number
  /** Share of prompt tokens found in the prefix cache. */
  readonly hitRate: number
}

/** Sends each request at its time whatever the answers do, and waits for all of them. */
export async function runLoad(
  engine: LlmEngine,
  plan: readonly PlannedRequest[],
  offered: number,
): Promise<LoadResult> {
  const started = performance.now()
  const before = engine.stats()
  const first: number[] = []
  const inter: number[] = []
  let refused = 0
  let tokens = 0
  const one = async ({ at, prompt, maxTokens }: PlannedRequest) => {
    await new Promise((resolve) => setTimeout(resolve, at - (performance.now() - started)))
    let last = performance.now()
    let index = 0
    try {
      for await (const event of engine.submit({ prompt, maxTokens, ignoreEos: true })) {
        if (event.type === 'finish') continue
        const now = performance.now()
        if (index++ === 0) first.push(now - last)
        else inter.push(now - last)
        last = now
        tokens++
      }
    } catch {
      refused++
    }
  }
  await Promise.all(plan.map(one))
  const seconds = (performance.now() - started) / 1000
  const after = engine.stats()
  return {
    offered,
    completed: plan.length - refused,
    refused,
    seconds,
    tokensPerSecond: tokens / seconds,
    requestsPerSecond: (plan.length - refused) / seconds,
    firstToken: percentiles(first),
    interToken: percentiles(inter),
    preemptions: after.preemptions - before.preemptions,
    hitRate: (after.cached - before.cached) / Math.max(1, after.prompt - before.prompt),
  }
}

function percentiles(values: number[]): Percentiles {
  const sorted = values.sort((a, b) => a - b)
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN
  return { p50: at(0.5), p95: at(0.95), p99: at(0.99) }
}
