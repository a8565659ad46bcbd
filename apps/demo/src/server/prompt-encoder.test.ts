import { loadTokenizer } from '@flashmla/engine'
import { AbortedError } from '@flashmla/spec'
import { modelDirectory } from '@flashmla/tiny-mla'
import { expect, onTestFinished, test } from 'vitest'
import { PromptEncoder } from './prompt-encoder'

const tokenizer = await loadTokenizer(modelDirectory)
const text = (words: number, from = 0) => Array.from({ length: words }, (_, i) => `sea${(i + from) * 7919} `).join('')
const staying = new AbortController().signal

function encoderOf(directory: string | undefined): PromptEncoder {
  const encoder = new PromptEncoder(tokenizer, directory)
  onTestFinished(() => encoder.dispose())
  return encoder
}

test('long prompts are encoded as short ones are, each as its own', async () => {
  const encoder = encoderOf(modelDirectory)
  const texts = [text(10), text(4000), 'The sea', text(3000, 5), text(3500, 9)]
  expect(texts.map((each) => each.length > 16_384)).toEqual([false, true, false, true, true])
  const found = await Promise.all(texts.map((each) => encoder.encode(each, staying)))
  expect(found).toEqual(texts.map((each) => tokenizer.encode(each).ids))
})

test('a long prompt holds nobody up', async () => {
  const encoder = encoderOf(modelDirectory)
  await encoder.encode(text(3000), staying) // the thread is there
  let ticks = 0
  const timer = setInterval(() => ticks++, 1)
  const ids = await encoder.encode(text(40_000), staying)
  clearInterval(timer)
  expect(ids.length).toBeGreaterThan(40_000)
  expect(ticks).toBeGreaterThan(10) // encoded here it would be none
})

test('who has left, or whose server closes, gets no tokens', async () => {
  const encoder = encoderOf(modelDirectory)
  const client = new AbortController()
  const left = encoder.encode(text(3000), client.signal)
  client.abort()
  await expect(left).rejects.toThrow(AbortedError)
  const cut = encoder.encode(text(30_000), staying)
  encoder.dispose()
  await expect(cut).rejects.toThrow('A request whose prompt was being read was cancelled.')
  await expect(encoder.encode('The sea', staying)).rejects.toThrow(AbortedError)
})

test('a thread that has no tokenizer says so, without a folder there is none', async () => {
  await expect(encoderOf('/nowhere').encode(text(3000), staying)).rejects.toThrow(
    /could not be encoded.*tokenizer\.json/s,
  )
  expect(await encoderOf(undefined).encode(text(3000), staying)).toEqual(tokenizer.encode(text(3000)).ids)
})
