import { join } from 'node:path'
import { CheckpointError } from '@flashmla/spec'
import { Tokenizer } from '@huggingface/tokenizers'
import { readJsonObject } from './checkpoint/json-file'

/**
 * The tokenizer of a Hugging Face folder: tokenizer.json with tokenizer_config.json, whose `add_bos_token` is followed.
 * @throws CheckpointError when a file is absent or is no tokenizer's
 */
export async function loadTokenizer(directory: string): Promise<Tokenizer> {
  const read = async (name: string) => {
    const file = join(directory, name)
    const json = await readJsonObject(file)
    if (json) return json
    throw new CheckpointError({
      file,
      fact: 'the file is missing.',
      hint: "Give a folder that holds the model's tokenizer.json and tokenizer_config.json, or work with token ids.",
    })
  }
  const [json, config] = [await read('tokenizer.json'), await read('tokenizer_config.json')]
  try {
    return new Tokenizer(withBeginning(json, config), config)
  } catch (cause) {
    throw new CheckpointError({ file: join(directory, 'tokenizer.json'), fact: 'it is no tokenizer.', cause })
  }
}

/**
 * DeepSeek's tokenizer.json adds no beginning-of-sequence token: transformers gives it a post-processor that does when
 * `add_bos_token` is true (LlamaTokenizerFast, update_post_processor).
 */
function withBeginning(json: Record<string, unknown>, config: Record<string, unknown>): Record<string, unknown> {
  const bos = tokenText(config.bos_token)
  const known = JSON.stringify(json.post_processor ?? null).includes(JSON.stringify(bos))
  if (config.add_bos_token !== true || bos === '' || known) return json
  const begun = (id: string, type_id: number) => [{ SpecialToken: { id: bos, type_id } }, { Sequence: { id, type_id } }]
  const [single, pair] = [begun('A', 0), [...begun('A', 0), ...begun('B', 1)]]
  return { ...json, post_processor: { type: 'TemplateProcessing', single, pair } }
}

/** A special token of tokenizer_config.json, which holds a string or an object; empty where there is none. */
export function tokenText(token: unknown): string {
  const text = typeof token === 'string' ? token : (token as { content?: unknown } | null | undefined)?.content
  return typeof text === 'string' ? text : ''
}
