import type { StepInput, StepModel } from '@flashmla/engine'
import { BlockPool } from '@flashmla/kv-cache'
import { OutOfPagesError } from '@flashmla/spec'

export interface StubOptions {
  readonly numBlocks?: number
  readonly pageSize?: number
  /** Milliseconds that a step takes. */
  readonly delayMs?: number
  /** Asked before each step; true makes it fail, as a crashed worker does. */
  readonly crashes?: () => boolean
}

/** A model that pages like a real one and whose next token follows from the last one and its position: for tests of what stands above. */
export class StubModel implements StepModel {
  readonly config = { vocabSize: 4096, maxPositions: 1024, eosTokenIds: [1] }
  readonly maxBatchSize = 64
  readonly maxBatchTokens = 1024
  readonly pageSize: number
  readonly pool: BlockPool

  constructor(private readonly options: StubOptions = {}) {
    this.pageSize = options.pageSize ?? 16
    this.pool = new BlockPool(options.numBlocks ?? 256)
  }

  async step(inputs: readonly StepInput[]): Promise<Float32Array[]> {
    const pages = inputs.reduce((sum, { sequence, tokens }) => sum + sequence.pagesNeeded(tokens.length), 0)
    if (pages > this.pool.numFree) throw new OutOfPagesError(pages, this.pool.numFree)
    if (this.options.delayMs) await new Promise((resolve) => setTimeout(resolve, this.options.delayMs))
    if (this.options.crashes?.()) throw new Error('the worker crashed')
    return inputs.map(({ sequence, tokens, logits }) => {
      const first = sequence.length
      sequence.appendTokens(tokens)
      const rows = logits === 'none' ? [] : logits === 'last' ? [tokens.length - 1] : tokens.map((_, i) => i)
      const { vocabSize } = this.config
      const out = new Float32Array(rows.length * vocabSize)
      rows.forEach((row, i) => {
        // Letters and common words of the embedded vocabulary: text that looks like text.
        const favourite = 300 + ((tokens[row]! * 31 + (first + row) * 17) % 700)
        out[i * vocabSize + favourite] = 12
        out[i * vocabSize + ((favourite * 7) % 900) + 280] = 11
      })
      return out
    })
  }
}
