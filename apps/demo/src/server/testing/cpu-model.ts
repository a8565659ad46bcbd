import { createCpuBackend } from '@flashmla/cpu'
import { Model, type StepModel } from '@flashmla/engine'
import { modelDirectory } from '@flashmla/tiny-mla'

/** The embedded model on the fast CPU backend, in a small pool, failing after a step when told to, as a crashed worker does. */
export async function crashingCpuModel(crashes: () => boolean): Promise<StepModel> {
  const model = await Model.load(modelDirectory, {
    backend: await createCpuBackend(),
    pageSize: 16,
    numBlocks: 48,
    maxBatchSize: 32,
    maxBatchTokens: 256,
  })
  return {
    config: model.config,
    pool: model.pool,
    pageSize: model.pageSize,
    maxBatchSize: model.maxBatchSize,
    maxBatchTokens: model.maxBatchTokens,
    async step(inputs) {
      const results = await model.step(inputs)
      if (crashes()) throw new Error('the worker crashed')
      return results
    },
  }
}
