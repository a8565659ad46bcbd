import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { expect, it } from 'vitest'
import { relaxedModule, simdModule } from './modules.generated'

const folder = fileURLToPath(new URL('../../wasm/', import.meta.url))
const sha256 = (data: Uint8Array) => createHash('sha256').update(data).digest('hex')
const manifest: { sources: Record<string, string>; modules: Record<string, string> } = JSON.parse(
  readFileSync(`${folder}manifest.json`, 'utf8'),
)

it('the committed modules were built from the committed sources', () => {
  const sources = readdirSync(folder).filter((name) => /\.[ch]$/.test(name))
  expect(Object.fromEntries(sources.map((name) => [name, sha256(readFileSync(folder + name))]))).toEqual(
    manifest.sources,
  )
})

it.each([
  ['simd', simdModule],
  ['relaxed', relaxedModule],
])('the bundled %s module is the built one', (name, base64) => {
  expect(sha256(readFileSync(`${folder}kernels.${name}.wasm`))).toBe(manifest.modules[name])
  expect(sha256(Buffer.from(base64, 'base64'))).toBe(manifest.modules[name])
})
