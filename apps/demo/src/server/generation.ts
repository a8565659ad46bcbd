import type { SamplingParams, TextEvent, TextFinishEvent, TextRequest } from '@flashmla/engine'
import { streamText } from '@flashmla/engine'
import type { Tenant } from './access'
import type { GrammarFormat, ServerContext } from './context'
import { HttpError } from './errors'
import type { SharedBody, Usage } from './schemas'

/** An event of one of several prompts, its index counted over all their samples. */
export type ChoiceEvent = TextEvent | TextFinishEvent

export interface Generation {
  readonly prompts: readonly (readonly number[])[]
  readonly body: SharedBody
  readonly logprobs: number | undefined
  readonly tenant: Tenant
  readonly signal: AbortSignal
}

/** The running samples of a request: their events in the order of arrival, and what they have used so far. */
export interface Choices {
  readonly events: AsyncIterable<ChoiceEvent>
  usage(): Usage
  cancel(): void
}

/**
 * Submits every prompt of a request, or none.
 * @throws HttpError and the engine's errors before anything was queued
 */
export function startGeneration(context: ServerContext, generation: Generation): Choices {
  const { prompts, body, signal } = generation
  const n = body.n ?? 1
  const requests = prompts.map((prompt) => textRequest(context, prompt, generation))
  const started = performance.now()
  const streams: ReturnType<typeof streamText>[] = []
  try {
    for (const request of requests) streams.push(streamText(context.engine, context.vocabulary, request))
  } catch (error) {
    for (const stream of streams) {
      stream.cancel()
      // Nobody will read these: their end is no news.
      drain(stream)
    }
    throw error
  }
  const used = { completion: 0, cached: prompts.map(() => 0) }
  const last = new Map<number, number>()
  const observe = (prompt: number, event: ChoiceEvent) => {
    const now = performance.now()
    if (event.type === 'finish') {
      used.cached[prompt] = event.cachedTokens
      context.metrics.duration.observe((now - started) / 1000)
      return
    }
    used.completion++
    const before = last.get(event.index)
    if (before === undefined) context.metrics.firstToken.observe((now - started) / 1000)
    else context.metrics.interToken.observe((now - before) / 1000)
    last.set(event.index, now)
  }
  const numbered = streams.map(async function* (stream, prompt) {
    for await (const event of stream) {
      const choice = { ...event, index: prompt * n + event.index }
      observe(prompt, choice)
      yield choice
    }
  })
  const cancel = () => {
    for (const stream of streams) stream.cancel()
  }
  signal.addEventListener('abort', cancel, { once: true })
  return {
    events: numbered.length === 1 ? numbered[0]! : merge(numbered),
    usage: () => {
      const prompt = prompts.reduce((sum, ids) => sum + ids.length, 0)
      return {
        prompt_tokens: prompt,
        completion_tokens: used.completion,
        total_tokens: prompt + used.completion,
        prompt_tokens_details: { cached_tokens: used.cached.reduce((a, b) => a + b, 0) },
      }
    },
    cancel,
  }
}

function textRequest(context: ServerContext, prompt: readonly number[], generation: Generation): TextRequest {
  const { body, logprobs, tenant } = generation
  const { limits } = context
  const room = context.model.maxPositions - prompt.length
  if (room < 1)
    throw new HttpError(
      400,
      `The prompt's ${prompt.length} tokens fill the model's context of ${context.model.maxPositions}.`,
      {
        code: 'context_length_exceeded',
        param: 'prompt',
      },
    )
  if (body.max_tokens !== undefined && body.max_tokens > limits.maxTokens)
    throw new HttpError(400, `max_tokens ${body.max_tokens} is more than this server's ${limits.maxTokens}.`, {
      param: 'max_tokens',
    })
  if (body.max_tokens !== undefined && body.max_tokens > room)
    throw new HttpError(
      400,
      `${prompt.length} prompt tokens and ${body.max_tokens} new ones are more than the model's context of ${context.model.maxPositions}.`,
      { code: 'context_length_exceeded', param: 'max_tokens' },
    )
  const sampling: SamplingParams = {
    temperature: body.temperature ?? 1,
    ...defined({
      topP: body.top_p,
      topK: body.top_k,
      minP: body.min_p,
      presencePenalty: body.presence_penalty,
      frequencyPenalty: body.frequency_penalty,
      repetitionPenalty: body.repetition_penalty,
      seed: body.seed,
      logprobs,
    }),
    logitBias: new Map(Object.entries(body.logit_bias ?? {}).map(([id, bias]) => [Number(id), bias])),
  }
  const format = grammarFormat(body)
  const grammar = format && context.grammar(format)
  return {
    prompt,
    maxTokens: body.max_tokens ?? Math.min(limits.maxTokens, room),
    n: body.n ?? 1,
    sampling,
    stop: body.stop === undefined ? [] : [body.stop].flat(),
    ignoreEos: body.ignore_eos ?? false,
    priority: body.priority ?? 0,
    speculate: body.speculate ?? 0,
    cacheSalt: tenant.salt,
    deadlineMs: limits.timeoutMs,
    ...(grammar ? { constraint: () => grammar.constraint() } : {}),
  }
}

function grammarFormat(body: SharedBody): GrammarFormat | undefined {
  const format = body.response_format
  if (!format || format.type === 'text') return undefined
  return format.type === 'json_object'
    ? { type: 'json_object' }
    : { type: 'json_schema', schema: format.json_schema.schema }
}

function defined<T extends object>(fields: T): { [K in keyof T]: NonNullable<T[K]> } {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as never
}

async function drain(events: AsyncIterable<unknown>): Promise<void> {
  try {
    for await (const _ of events);
  } catch {
    // Cancelled, as was asked.
  }
}

/** The events of several iterators as they come. */
async function* merge<T>(sources: readonly AsyncGenerator<T>[]): AsyncGenerator<T> {
  const pull = async (source: AsyncGenerator<T>) => ({ source, result: await source.next() })
  const pending = new Map(sources.map((source) => [source, pull(source)]))
  try {
    while (pending.size > 0) {
      const { source, result } = await Promise.race(pending.values())
      if (result.done) {
        pending.delete(source)
        continue
      }
      pending.set(source, pull(source))
      yield result.value
    }
  } finally {
    for (const [source, next] of pending) {
      next.catch(() => {})
      source.return(undefined).catch(() => {})
    }
  }
}
