import type { PagedKvCache } from '@flashmla/kv-cache'
import type { Branch } from './branch'

/** One step, as it went. */
export interface StepReport {
  readonly sequences: number
  /** Prompt tokens computed. */
  readonly prefill: number
  /** Tokens delivered. */
  readonly generated: number
  readonly milliseconds: number
}

/** Counters since the engine began, and gauges of now. Tokens unless said otherwise. */
export interface EngineStats {
  readonly steps: number
  /** Prompt tokens computed (recomputation after preemption included). */
  readonly prefill: number
  readonly generated: number
  /** Guessed by the drafter, and of these right. */
  readonly drafted: number
  readonly accepted: number
  /** Prompt tokens submitted, and of these those found in the prefix cache. */
  readonly prompt: number
  readonly cached: number
  /** Requests that ended with an answer. */
  readonly finished: number
  readonly queued: number
  readonly running: number
  readonly preemptions: number
  /** Pages in use by live sequences, remembered by none but the prefix cache, and free. */
  readonly pages: { readonly total: number; readonly used: number; readonly cached: number; readonly free: number }
}

export interface PageMap {
  readonly pageSize: number
  /** `[pages]`: −1 free, −2 remembered, else the index in `sequences` of the first that holds it. */
  readonly owner: Int32Array
  /** `[pages]` sequences that hold the page. */
  readonly holders: Uint16Array
  readonly sequences: readonly { readonly request: number; readonly sample: number; readonly tokens: number }[]
}

export function pageMap(cache: PagedKvCache, running: readonly Branch[]): PageMap {
  const owner = new Int32Array(cache.pool.numBlocks).fill(-1)
  const holders = new Uint16Array(cache.pool.numBlocks)
  for (let block = 0; block < owner.length; block++) if (cache.blockState(block) === 'cached') owner[block] = -2
  running.forEach((branch, i) => {
    for (const block of branch.sequence?.blocks ?? []) {
      if (holders[block]!++ === 0) owner[block] = i
    }
  })
  const sequences = running.map(({ job, index, tokens }) => ({ request: job.id, sample: index, tokens: tokens.length }))
  return { pageSize: cache.pageSize, owner, holders, sequences }
}
