import { fileURLToPath } from 'node:url'
import { defineConfig } from 'vitest/config'

const root = fileURLToPath(new URL('.', import.meta.url))

export default defineConfig({
  resolve: { alias: [{ find: /^@flashmla\/(?!tiny-mla)(.*)$/, replacement: `${root}packages/$1/src/index.ts` }] },
  test: { include: ['{packages,apps}/*/src/**/*.test.ts', 'benchmarks/src/**/*.test.ts'], testTimeout: 60_000 },
})
