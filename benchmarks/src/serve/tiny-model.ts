import { createCpuBackend } from '@flashmla/cpu'
import { Model } from '@flashmla/engine'
import { modelDirectory } from '@flashmla/tiny-mla'

/** tiny-mla on the fast backend with so many threads. */
export async function tinyModel(threads: number) {
  const backend = await createCpuBackend({ threads })
  const model = await Model.load(modelDirectory, {
    backend,
    pageSize: 16,
    numBlocks: 512,
    maxBatchSize: 32,
    maxBatchTokens: 256,
  })
  return { name: `tiny-mla, ${backend.name} backend, ${threads} thread${threads > 1 ? 's' : ''}`, backend, model }
}
