import type { StepInput, StepModel } from '@flashmla/engine'
import { BlockPool } from '@flashmla/kv-cache'

/**
 * Stands in for an accelerator, to show the scheduler apart from any kernel: a step takes `stepMs` however many rows it
 * has (reading the weights), and `tokenMs` more for each row. It pages and answers as a real model does.
 */
export class SimulatedModel implements StepModel {
  readonly config = { vocabSize: 512, maxPositions: 4096, eosTokenIds: [] }
  readonly maxBatchTokens = 2048
  readonly pageSize = 16
  readonly pool: BlockPool
  readonly #logits: Float32Array

  constructor(
    readonly maxBatchSize: number,
    readonly stepMs: number,
    readonly tokenMs: number,
    numBlocks: number,
  ) {
    this.pool = new BlockPool(numBlocks)
    this.#logits = new Float32Array(512)
    this.#logits[7] = 1
  }

  async step(inputs: readonly StepInput[]): Promise<Float32Array[]> {
    let rows = 0
    for (const { sequence, tokens } of inputs) {
      sequence.appendTokens(tokens)
      rows += tokens.length
    }
    const until = performance.now() + this.stepMs + this.tokenMs * rows
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, until - performance.now() - 1)))
    while (performance.now() < until);
    return inputs.map(() => this.#logits)
  }
}
