import type { StepInput, StepModel } from '@flashmla/engine'
import { BlockPool, type PagedSequence } from '@flashmla/kv-cache'

/** A model that answers every prompt with the same tokens, then ends: for tests of what is made of an answer. */
export class ScriptedModel implements StepModel {
  readonly config = { vocabSize: 4096, maxPositions: 2048, eosTokenIds: [1] }
  readonly maxBatchSize = 16
  readonly maxBatchTokens = 2048
  readonly pageSize = 16
  readonly pool = new BlockPool(256)
  readonly #said = new WeakMap<PagedSequence, number>()

  constructor(private readonly script: readonly number[]) {}

  async step(inputs: readonly StepInput[]): Promise<Float32Array[]> {
    return inputs.map(({ sequence, tokens, logits }) => {
      sequence.appendTokens(tokens)
      if (logits === 'none') return new Float32Array(0)
      const at = this.#said.get(sequence) ?? 0
      this.#said.set(sequence, at + 1)
      const row = new Float32Array(this.config.vocabSize)
      row[this.script[at] ?? 1] = 20
      return row
    })
  }
}
