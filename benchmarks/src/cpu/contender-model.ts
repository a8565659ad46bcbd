import type { CacheFormatName } from '@flashmla/engine'
import { Model } from '@flashmla/engine'
import type { Backend } from '@flashmla/spec'
import { modelDirectory } from '@flashmla/tiny-mla'
import type { Contender, Session } from './contender'
import { passes, passTokens } from './contender'

/** The engine's model graph on a backend of this repository. Logits are read back to JavaScript, as sampling needs them. */
export function modelContender(name: string, backend: Backend, cacheFormat: CacheFormatName = 'f32'): Contender {
  const load = (batch: number, length: number) =>
    Model.load(modelDirectory, {
      backend,
      numBlocks: batch * Math.ceil(length / 64),
      maxBatchSize: batch,
      maxBatchTokens: Math.max(passTokens, length),
      cacheFormat,
    })
  return {
    name,
    async logits(tokens) {
      const model = await load(1, tokens.length)
      const [logits] = await model.step([{ sequence: model.sequence(), tokens, logits: 'last' }])
      model.dispose()
      return logits!
    },
    async session(batch, length): Promise<Session> {
      const model = await load(batch, length)
      let sequences = Array.from({ length: batch }, () => model.sequence())
      return {
        async prefill(prompts) {
          for (const { first, prompts: run } of passes(prompts))
            await model.step(run.map((tokens, i) => ({ sequence: sequences[first + i]!, tokens, logits: 'last' })))
        },
        async decode(tokens) {
          await model.step(sequences.map((sequence, s) => ({ sequence, tokens: [tokens[s]!], logits: 'last' })))
        },
        reset() {
          for (const sequence of sequences) sequence.free()
          sequences = Array.from({ length: batch }, () => model.sequence())
        },
        async dispose() {
          model.dispose()
        },
      }
    },
    async dispose() {},
  }
}
