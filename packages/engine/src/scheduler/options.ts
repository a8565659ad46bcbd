import type { BlockPool } from '@flashmla/kv-cache'
import type { DrawInput, StepInput } from '../step'
import type { Drafter } from './drafter'

/** What the engine needs of a model; `Model` is one. */
export interface StepModel {
  readonly config: {
    readonly vocabSize: number
    readonly maxPositions: number
    readonly eosTokenIds: readonly number[]
  }
  readonly pool: BlockPool
  readonly pageSize: number
  readonly maxBatchSize: number
  readonly maxBatchTokens: number
  step(inputs: readonly StepInput[]): Promise<Float32Array[]>
  /** As `step`, with tokens drawn from the logits, -1 where a row has none to choose; without it the engine draws. */
  readonly draw?: ((inputs: readonly DrawInput[]) => Promise<Int32Array[]>) | undefined
}

export interface EngineOptions {
  /** Requests that may wait; a further one is refused with QueueFullError (default 256). */
  readonly maxQueued?: number
  /** Tokens of one step over all sequences (default: the model's maximum, at most 512). */
  readonly maxBatchTokens?: number
  /** Prompt tokens of one sequence that a step takes (default 128). */
  readonly prefillChunk?: number
  /** Sequences of one step (default: the model's maximum). */
  readonly maxBatchSize?: number
  /** Share of the pool that admission leaves free while others run (default 0.02). */
  readonly watermark?: number
  /** Remember the pages of past prompts (default true). */
  readonly prefixCache?: boolean
  readonly drafter?: Drafter
  /** Attempts at a step before its requests fail with the model's error (default 2). */
  readonly maxAttempts?: number
}
