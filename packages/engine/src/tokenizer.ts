import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { CheckpointError } from '@flashmla/spec'
import { Tokenizer } from '@huggingface/tokenizers'

/**
 * The tokenizer of a Hugging Face folder: tokenizer.json with tokenizer_config.json.
 * @throws CheckpointError when a file is absent or is no tokenizer's
 */
export async function loadTokenizer(directory: string): Promise<Tokenizer> {
  const read = async (name: string) => {
    const file = join(directory, name)
    try {
      return JSON.parse(await readFile(file, 'utf8'))
    } catch (cause) {
      throw new CheckpointError({
        file,
        fact: "the file can't be read as JSON.",
        hint: "Give a folder that holds the model's tokenizer.json and tokenizer_config.json, or work with token ids.",
        cause,
      })
    }
  }
  const [json, config] = [await read('tokenizer.json'), await read('tokenizer_config.json')]
  try {
    return new Tokenizer(json, config)
  } catch (cause) {
    throw new CheckpointError({ file: join(directory, 'tokenizer.json'), fact: 'it is no tokenizer.', cause })
  }
}
