import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { CheckpointError } from '@flashmla/spec'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { ChatTemplate } from './chat-template'
import { loadTokenizer } from './tokenizer'

const tiny = fileURLToPath(new URL('../../tiny-mla/model/', import.meta.url))
let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'tokenizer-'))
})
afterEach(() => rm(folder, { recursive: true }))

/** tiny-mla's tokenizer with another post-processor and configuration. */
async function write(postProcessor: object | null, config: object): Promise<void> {
  const json = JSON.parse(await readFile(join(tiny, 'tokenizer.json'), 'utf8'))
  const template = '{{ bos_token }}{{ messages[0].content }}'
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify({ ...json, post_processor: postProcessor }))
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify({ chat_template: template, ...config }))
}

const bos = '<|begin_of_text|>'
const byteLevel = { type: 'ByteLevel', add_prefix_space: true, trim_offsets: false, use_regex: true }

it.each([
  ['a string', bos],
  ['an object', { content: bos, __type: 'AddedToken' }],
])('begins a text as add_bos_token says, which is not in DeepSeek tokenizer.json: %s', async (_, bos_token) => {
  const plain = await loadTokenizer(tiny)
  for (const postProcessor of [byteLevel, null]) {
    await write(postProcessor, { add_bos_token: true, bos_token })
    const tokenizer = await loadTokenizer(folder)
    expect(tokenizer.encode('The sea').ids).toEqual(plain.encode('The sea').ids)
    expect(tokenizer.encode('').ids).toEqual([0])
    expect(tokenizer.encode('The sea', { add_special_tokens: false }).ids).not.toContain(0)
  }
})

it.each([true, false])('a chat begins once, with add_bos_token %s', async (add_bos_token) => {
  await write(byteLevel, { add_bos_token, bos_token: bos })
  const [tokenizer, chat] = [await loadTokenizer(folder), await ChatTemplate.load(folder)]
  const { ids } = tokenizer.encode(chat.render([{ role: 'user', content: 'The sea' }]))
  expect(ids).toEqual((await loadTokenizer(tiny)).encode('The sea').ids)
  expect(tokenizer.encode('The sea').ids.includes(0)).toBe(add_bos_token)
})

it.each(['null', '5', '[]', '{'])('names the file that holds %s in place of an object', async (content) => {
  for (const name of ['tokenizer_config.json', 'tokenizer.json']) {
    await write(byteLevel, {})
    await writeFile(join(folder, name), content)
    const chat = () => ChatTemplate.load(folder)
    for (const load of [() => loadTokenizer(folder), ...(name === 'tokenizer.json' ? [] : [chat])]) {
      const error: unknown = await load().catch((thrown) => thrown)
      expect(error, name).toBeInstanceOf(CheckpointError)
      expect((error as CheckpointError).file).toBe(join(folder, name))
    }
  }
})

it('takes the plain template where there is none, and names one that it can not read', async () => {
  expect((await ChatTemplate.load(folder)).render([{ role: 'user', content: 'Hi' }])).toBe('user: Hi\nassistant:')
  await write(null, {
    chat_template: [null, 5, { name: 'default', template: 'the template' }],
    eos_token: { content: 5 },
  })
  expect((await ChatTemplate.load(folder)).source).toBe('the template')
  for (const name of ['chat_template.jinja', 'tokenizer_config.json']) {
    await rm(join(folder, name), { force: true })
    await mkdir(join(folder, name))
    const error = await ChatTemplate.load(folder).catch((thrown) => thrown)
    expect(error).toBeInstanceOf(CheckpointError)
    expect(error.file).toBe(join(folder, name))
    await rm(join(folder, name), { recursive: true })
  }
})
