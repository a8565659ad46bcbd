import { createWriteStream } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { Checkpoint } from '@flashmla/engine'
import { parseMlaConfig } from '@flashmla/latent'
import { deepseek2Metadata } from './deepseek2'
import { deepseek2Tensors } from './tensors'
import { tokenizerMetadata } from './tokenizer'
import { ggufChunks } from './write'

/** Writes a Hugging Face folder of an MLA model as a GGUF file that llama.cpp's `deepseek2` loads. */
export async function convertToGguf(directory: string, file: string, dtype: 'f32' | 'bf16'): Promise<void> {
  const json = async (name: string) => JSON.parse(await readFile(join(directory, name), 'utf8'))
  const raw = await json('config.json')
  const config = parseMlaConfig(raw)
  const special = { bos: raw.bos_token_id as number, eos: raw.eos_token_id as number }
  const metadata = new Map([
    ...deepseek2Metadata(config, dtype, basename(directory)),
    ...tokenizerMetadata(await json('tokenizer.json'), config.vocabSize, special),
  ])
  const checkpoint = await Checkpoint.open(directory)
  try {
    const tensors = deepseek2Tensors(checkpoint, config, dtype)
    await pipeline(Readable.from(ggufChunks(metadata, tensors)), createWriteStream(file))
  } finally {
    await checkpoint.close()
  }
}
