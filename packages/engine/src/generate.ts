import type { Tokenizer } from '@huggingface/tokenizers'
import { Vocabulary } from './grammar/vocabulary'
import { LlmEngine } from './scheduler/engine'
import type { StepModel } from './scheduler/options'
import type { FinishEvent, GenerationRequest } from './scheduler/request'
import type { SamplingParams } from './scheduler/sampler'
import type { TextEvent, TextFinishEvent } from './scheduler/text'
import { streamText } from './scheduler/text'

/** One sample of one prompt: what is sampled, and when it ends. */
export interface GenerateOptions
  extends SamplingParams,
    Omit<GenerationRequest, 'prompt' | 'sampling' | 'n' | 'shouldStop'> {
  /** New tokens (by default 128, or what the context and the pool leave room for if that is less). */
  readonly maxTokens?: number
}

export interface GenerateTextOptions extends GenerateOptions {
  /** The text ends before the first of these that the model writes. */
  readonly stop?: readonly string[]
}

/**
 * Yields token ids as they are decoded; an end-of-sequence token ends it and is not yielded. Returns how it ended.
 * Given an engine, the prompt shares its batch and its prefix cache; given a model, the calls that run at a time share an
 * engine that ends with the last of them.
 * Leaving the loop frees the pages at once.
 * @throws InvalidArgumentError for a parameter out of range, AbortedError when the signal fires
 */
export async function* generate(
  target: StepModel | LlmEngine,
  prompt: readonly number[],
  options: GenerateOptions = {},
): AsyncGenerator<number, FinishEvent | undefined> {
  const { engine, release } = await borrow(target)
  let finish: FinishEvent | undefined
  try {
    for await (const event of engine.submit(request(engine, prompt, options))) {
      if (event.type === 'token') yield event.token
      else finish = event
    }
    return finish
  } finally {
    await release()
  }
}

/**
 * Yields the text as it becomes certain, with each token and, where asked for, its log-probabilities. The last event is
 * the finish, with what was held back. A piece never splits a character and never holds a part of a stop string.
 */
export async function* generateText(
  target: StepModel | LlmEngine,
  tokenizer: Tokenizer,
  prompt: string | readonly number[],
  options: GenerateTextOptions = {},
): AsyncGenerator<TextEvent | TextFinishEvent, void> {
  const { engine, release } = await borrow(target)
  try {
    const ids = typeof prompt === 'string' ? tokenizer.encode(prompt).ids : prompt
    const vocabulary = new Vocabulary(tokenizer, engine.model.config.vocabSize)
    yield* streamText(engine, vocabulary, { ...request(engine, ids, options), stop: options.stop ?? [] })
  } finally {
    await release()
  }
}

function request({ contextTokens }: LlmEngine, prompt: readonly number[], options: GenerateOptions): GenerationRequest {
  const room = contextTokens - prompt.length
  const { maxTokens = room < 128 ? undefined : 128, ...rest } = options
  return { ...rest, prompt, maxTokens, sampling: options }
}

/** The engine of each model that `generate` runs on, and how many calls use it. */
const lent = new WeakMap<StepModel, { readonly engine: LlmEngine; users: number }>()
/** The engines that are ending: the last step of one may still run. */
const ending = new WeakMap<StepModel, Promise<void>>()

async function borrow(target: StepModel | LlmEngine): Promise<{ engine: LlmEngine; release(): Promise<void> }> {
  if (target instanceof LlmEngine) return { engine: target, release: async () => {} }
  while (ending.has(target)) await ending.get(target)
  const loan = lent.get(target) ?? { engine: new LlmEngine(target), users: 0 }
  lent.set(target, loan)
  loan.users++
  const release = async () => {
    if (--loan.users > 0) return
    lent.delete(target)
    const end = loan.engine.dispose().finally(() => ending.delete(target))
    ending.set(target, end)
    await end
  }
  return { engine: loan.engine, release }
}
