import { runBackendContract } from '@flashmla/testing'
import { afterAll, describe, it } from 'vitest'
import { createCpuBackend } from './create'

for (const threads of [1, 2]) {
  const opened = createCpuBackend({ threads, weights: 'f32', spin: 1000 })
  runBackendContract(`cpu, ${threads} threads`, () => opened, { describe, it })
  afterAll(async () => (await opened)[Symbol.asyncDispose]())
}
