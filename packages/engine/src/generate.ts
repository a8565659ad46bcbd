import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { CheckpointError } from '@flashmla/spec'
import { Tokenizer } from '@huggingface/tokenizers'
import type { Model } from './model'

export interface SamplingOptions {
  /** 0 is greedy. */
  readonly temperature?: number
  readonly topP?: number
  readonly seed?: number
}

export interface GenerateOptions extends SamplingOptions {
  readonly maxTokens?: number
  /** Tokens of the prompt that one forward pass takes. */
  readonly prefillChunk?: number
  /** Goes on past an end-of-sequence token. */
  readonly ignoreEos?: boolean
  readonly signal?: AbortSignal
}

/** Reads tokenizer.json of a Hugging Face folder. */
export async function loadTokenizer(directory: string): Promise<Tokenizer> {
  const read = async (name: string) => {
    const file = join(directory, name)
    try {
      return JSON.parse(await readFile(file, 'utf8'))
    } catch (cause) {
      throw new CheckpointError({ file, fact: "the file can't be read as JSON.", cause })
    }
  }
  return new Tokenizer(await read('tokenizer.json'), await read('tokenizer_config.json'))
}

/** Yields token ids as they are decoded; ends at an end-of-sequence token, which it does not yield. */
export async function* generate(
  model: Model,
  prompt: readonly number[],
  options: GenerateOptions = {},
): AsyncGenerator<number, void> {
  const { maxTokens = 128, prefillChunk = 64, signal } = options
  const random = mulberry32(options.seed ?? 0)
  const sequence = model.sequence()
  try {
    let logits = new Float32Array()
    for (let i = 0; i < prompt.length; i += prefillChunk) {
      signal?.throwIfAborted()
      logits = new Float32Array(await model.forward(sequence, prompt.slice(i, i + prefillChunk)))
    }
    for (let i = 0; i < maxTokens; i++) {
      const token = sample(logits.subarray(-model.config.vocabSize), options, random)
      if (!options.ignoreEos && model.config.eosTokenIds.includes(token)) return
      yield token
      if (i + 1 === maxTokens || sequence.length === model.config.maxPositions) return
      signal?.throwIfAborted()
      logits = new Float32Array(await model.forward(sequence, [token]))
    }
  } finally {
    sequence.free()
  }
}

/** One token from logits: the largest at temperature 0, else from the smallest set of probability ≥ topP. */
export function sample(logits: Float32Array, options: SamplingOptions, random: () => number): number {
  const { temperature = 0, topP = 1 } = options
  if (temperature === 0) return logits.reduce((best, value, i) => (value > logits[best]! ? i : best), 0)
  const order = Array.from(logits, (_, i) => i).sort((a, b) => logits[b]! - logits[a]!)
  const powers = order.map((i) => Math.exp((logits[i]! - logits[order[0]!]!) / temperature))
  const total = powers.reduce((a, b) => a + b, 0)
  let kept = 0
  let mass = 0
  while (kept < order.length && (kept === 0 || mass < topP * total)) mass += powers[kept++]!
  let target = random() * mass
  for (let i = 0; i < kept; i++) {
    target -= powers[i]!
    if (target < 0) return order[i]!
  }
  return order[kept - 1]!
}

/** Small seeded generator in [0, 1) (Tommy Ettinger's mulberry32, public domain). */
function mulberry32(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}

/** Turns token ids to text piece by piece, and holds back an incomplete UTF-8 character. */
export class StreamDecoder {
  #ids: number[] = []
  #shown = ''
  constructor(private readonly tokenizer: Tokenizer) {}

  push(id: number): string {
    this.#ids.push(id)
    const text = this.tokenizer.decode(this.#ids, { skip_special_tokens: true })
    if (text.endsWith('\ufffd')) return ''
    const piece = text.slice(this.#shown.length)
    this.#shown = text
    return piece
  }
}
