import type { CachedSequence } from '@flashmla/kv-cache'
import type { GenerationRequest, RequestListener, TokenConstraint } from './request'
import type { SamplingParams } from './sampler'

/** A request as the engine keeps it: its samples, and what they have in common. */
export interface Job {
  readonly id: number
  readonly request: GenerationRequest
  readonly listener: RequestListener
  /** Cancels the request; bound, for an AbortSignal. */
  readonly cancel: () => void
  readonly sampling: SamplingParams
  readonly seed: number
  readonly maxTokens: number
  readonly salt: string
  readonly priority: number
  /** performance.now() at which the request is given up. */
  readonly deadline: number
  readonly samples: number
  readonly live: Set<Branch>
  failures: number
  cachedTokens: number
}

/** One sample of a request. Its tokens outlive its pages: a preempted branch computes them anew. */
export class Branch {
  /** Prompt and generated tokens; the last ones may not be in the cache yet. */
  readonly tokens: number[]
  readonly promptLength: number
  sequence: CachedSequence | undefined
  constraint: TokenConstraint | undefined

  constructor(
    readonly job: Job,
    readonly index: number,
    tokens: readonly number[],
  ) {
    this.tokens = [...tokens]
    this.promptLength = job.request.prompt.length
    this.constraint = job.request.constraint?.(index)
  }

  get computed(): number {
    return this.sequence?.length ?? 0
  }

  /** Tokens whose latents aren't in the cache. */
  get pending(): number {
    return this.tokens.length - this.computed
  }

  get generated(): number {
    return this.tokens.length - this.promptLength
  }

  /** Frees the pages and keeps the tokens. */
  release(): void {
    this.sequence?.free()
    this.sequence = undefined
  }
}

/** Order of service: lower priority value, then earlier request, then lower sample. */
export function servedBefore(a: Branch, b: Branch): number {
  return a.job.priority - b.job.priority || a.job.id - b.job.id || a.index - b.index
}
