import type { MetadataValue } from './write'

interface TokenizerJson {
  readonly added_tokens: readonly { readonly id: number; readonly content: string; readonly special: boolean }[]
  readonly model: {
    readonly type: string
    readonly vocab: Readonly<Record<string, number>>
    readonly merges: readonly (string | readonly [string, string])[]
  }
}

/** llama.cpp's token types. */
const NORMAL = 1
const CONTROL = 3
const USER_DEFINED = 4
const UNUSED = 5

/**
 * Metadata of a byte-level BPE tokenizer.json. The benchmark feeds token ids, so the pre-tokenizer's name only has to be
 * one that llama.cpp knows; `gpt-2` splits as ByteLevel with use_regex does.
 */
export function tokenizerMetadata(
  json: TokenizerJson,
  vocabSize: number,
  special: { readonly bos: number; readonly eos: number },
): Map<string, MetadataValue> {
  if (json.model.type !== 'BPE') throw new RangeError(`A ${json.model.type} tokenizer is not converted; BPE is.`)
  const tokens = Array.from({ length: vocabSize }, (_, id) => `[PAD${id}]`)
  const types = new Array<number>(vocabSize).fill(UNUSED)
  for (const [token, id] of Object.entries(json.model.vocab)) {
    tokens[id] = token
    types[id] = NORMAL
  }
  for (const { id, content, special } of json.added_tokens) {
    tokens[id] = content
    types[id] = special ? CONTROL : USER_DEFINED
  }
  return new Map<string, MetadataValue>([
    ['tokenizer.ggml.model', { type: 'string', value: 'gpt2' }],
    ['tokenizer.ggml.pre', { type: 'string', value: 'gpt-2' }],
    ['tokenizer.ggml.tokens', { type: 'strings', value: tokens }],
    ['tokenizer.ggml.token_type', { type: 'int32s', value: types }],
    [
      'tokenizer.ggml.merges',
      { type: 'strings', value: json.model.merges.map((pair) => (typeof pair === 'string' ? pair : pair.join(' '))) },
    ],
    ['tokenizer.ggml.bos_token_id', { type: 'uint32', value: special.bos }],
    ['tokenizer.ggml.eos_token_id', { type: 'uint32', value: special.eos }],
  ])
}
