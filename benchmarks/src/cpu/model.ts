import { Model } from '@flashmla/engine'
import type { Backend } from '@flashmla/spec'
import { modelDirectory } from '@flashmla/tiny-mla'

export interface ModelSpeed {
  readonly backend: string
  readonly batch: number
  /** Tokens a second over the whole batch. */
  readonly prefill: number
  readonly decode: number
}

/** tiny-mla: a prompt of `promptTokens`, then `steps` decode steps of `batch` sequences that share nothing. Best of `runs`. */
export async function measureModel(
  backend: Backend,
  batch: number,
  options: { promptTokens: number; steps: number; runs: number },
): Promise<ModelSpeed> {
  const { promptTokens, steps, runs } = options
  const pages = batch * Math.ceil((promptTokens + steps + 1) / 64)
  const model = await Model.load(modelDirectory, { backend, numBlocks: pages, maxBatchSize: batch })
  const prompt = Array.from({ length: promptTokens }, (_, i) => (i * 977) % model.config.vocabSize)
  let prefill = 0
  let decode = 0
  for (let run = 0; run < runs; run++) {
    const sequences = Array.from({ length: batch }, () => model.sequence())
    const start = performance.now()
    for (const sequence of sequences) await model.step([{ sequence, tokens: prompt, logits: 'last' }])
    const filled = performance.now()
    for (let step = 0; step < steps; step++)
      await model.step(sequences.map((sequence, s) => ({ sequence, tokens: [step * 31 + s], logits: 'last' })))
    const ended = performance.now()
    prefill = Math.max(prefill, (batch * promptTokens * 1000) / (filled - start))
    decode = Math.max(decode, (batch * steps * 1000) / (ended - filled))
    for (const sequence of sequences) sequence.free()
  }
  model.dispose()
  return { backend: backend.name, batch, prefill, decode }
}
