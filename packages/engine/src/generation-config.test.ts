import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { ReferenceBackend } from '@flashmla/cpu'
import { CheckpointError } from '@flashmla/spec'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { generate } from './generate'
import { Model } from './model'

const fixture = fileURLToPath(new URL('../fixtures/v3-tiny/', import.meta.url))
let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'generation-config-'))
  await cp(fixture, folder, { recursive: true })
})
afterEach(() => rm(folder, { recursive: true }))

const file = () => join(folder, 'generation_config.json')
const load = () => Model.load(folder, { backend: new ReferenceBackend(), numBlocks: 4 })

it.each([
  ['{"eos_token_id": 7}', [7]],
  ['{"eos_token_id": [7, 9]}', [7, 9]],
  ['{"eos_token_id": null}', [1]],
  ['{}', [1]],
  [undefined, [1]],
])('takes the end tokens of generation_config.json before those of config.json: %s', async (content, expected) => {
  if (content === undefined) await rm(file())
  else await writeFile(file(), content)
  const model = await load()
  expect(model.config.eosTokenIds).toEqual(expected)
  model.dispose()
})

it('ends a text at any of them', async () => {
  const tokens = async (ignoreEos: boolean) => {
    const model = await load()
    const list: number[] = []
    for await (const token of generate(model, [1, 2, 3], { maxTokens: 12, ignoreEos })) list.push(token)
    model.dispose()
    return list
  }
  const whole = await tokens(true)
  const end = whole[6]!
  await writeFile(file(), JSON.stringify({ eos_token_id: [319, end] }))
  expect(await tokens(false)).toEqual(whole.slice(0, whole.indexOf(end)))
})

it.each(['null', '{', '{"eos_token_id": "end"}', '{"eos_token_id": [1, -2]}'])(
  'names a bad file: %s',
  async (content) => {
    await writeFile(file(), content)
    const error = await load().catch((thrown) => thrown)
    expect(error).toBeInstanceOf(CheckpointError)
    expect(error.file).toBe(file())
  },
)
