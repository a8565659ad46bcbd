import type {
  RequestListener,
  RunningRequest,
  SamplingParams,
  TextEvent,
  TextFinishEvent,
  TextRequest,
} from '@flashmla/engine'
import { startText } from '@flashmla/engine'
import type { Tenant } from './access'
import type { GrammarFormat, ServerContext } from './context'
import { HttpError } from './errors'
import type { SharedBody, Usage } from './schemas'

/** An event of one of several prompts, its index counted over all their samples. */
export type ChoiceEvent = TextEvent | TextFinishEvent

export interface Generation {
  readonly prompts: readonly (readonly number[])[]
  readonly body: SharedBody
  /** The body's fields of these, as errors name them. */
  readonly fields: { readonly prompt: string; readonly maxTokens: string }
  /** New tokens where the body does not say (default: as many as there is room for). */
  readonly defaultMaxTokens?: number
  readonly logprobs: number | undefined
  readonly tenant: Tenant
  readonly signal: AbortSignal
  /** What the answer must follow, in place of what the body's response_format asks for. */
  readonly follow?: GrammarFormat
  /** Special tokens whose text is part of the answer. */
  readonly shown?: ReadonlySet<string>
}

/** The running samples of a request, and what they have used so far. */
export interface Choices {
  usage(): Usage
  /** Ends them all; the listener hears an AbortedError unless it has heard of an end. */
  cancel(): void
}

/**
 * Submits every prompt of a request, or none. The listener hears of all of them, and of the first error as the end.
 * @throws HttpError and the engine's errors before anything was queued
 */
export function startGeneration(
  context: ServerContext,
  generation: Generation,
  listener: RequestListener<ChoiceEvent>,
): Choices {
  const { prompts, body, signal } = generation
  const { metrics } = context
  const n = body.n ?? 1
  const requests = prompts.map((prompt) => textRequest(context, prompt, generation))
  const started = performance.now()
  const used = { completion: 0, cached: prompts.map(() => 0) }
  const last: number[] = []
  const observe = (prompt: number, event: ChoiceEvent) => {
    if (event.type === 'finish') {
      used.cached[prompt] = event.cachedTokens
      return
    }
    const now = performance.now()
    if (used.completion++ === 0) metrics.firstToken.observe((now - started) / 1000)
    const before = last[event.index]
    if (before !== undefined) metrics.interToken.observe((now - before) / 1000)
    last[event.index] = now
  }
  const running: RunningRequest[] = []
  const cancel = () => {
    for (const each of running) each.cancel()
  }
  let open = prompts.length
  const end = (error?: Error) => {
    if (open === 0) return
    open = error ? 0 : open - 1
    if (open > 0) return
    signal.removeEventListener('abort', cancel)
    if (error) cancel()
    else metrics.duration.observe((performance.now() - started) / 1000)
    listener.end(error)
  }
  try {
    requests.forEach((request, prompt) => {
      const each: RequestListener<ChoiceEvent> = {
        event(event) {
          if (open === 0) return
          const choice = prompt === 0 ? event : { ...event, index: prompt * n + event.index }
          observe(prompt, choice)
          listener.event(choice)
        },
        end,
      }
      running.push(startText(context.engine, context.vocabulary, request, each))
    })
  } catch (error) {
    // The caller is told by this error, and of no end.
    open = 0
    cancel()
    throw error
  }
  signal.addEventListener('abort', cancel, { once: true })
  // The next step computes a prompt: nobody's tokens wait for it.
  context.pacer.flush()
  return {
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
  const { body, fields, logprobs, tenant } = generation
  const { limits } = context
  const room = context.model.maxPositions - prompt.length
  if (room < 1)
    throw new HttpError(
      400,
      `The prompt's ${prompt.length} tokens fill the model's context of ${context.model.maxPositions}.`,
      {
        code: 'context_length_exceeded',
        param: fields.prompt,
      },
    )
  if (body.max_tokens !== undefined && body.max_tokens > limits.maxTokens)
    throw new HttpError(400, `${fields.maxTokens} ${body.max_tokens} is more than this server's ${limits.maxTokens}.`, {
      param: fields.maxTokens,
    })
  if (body.max_tokens !== undefined && body.max_tokens > room)
    throw new HttpError(
      400,
      `${prompt.length} prompt tokens and ${body.max_tokens} new ones are more than the model's context of ${context.model.maxPositions}.`,
      { code: 'context_length_exceeded', param: fields.maxTokens },
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
  const format = generation.follow ?? grammarFormat(body)
  const grammar = format && context.grammar(format)
  return {
    prompt,
    maxTokens: body.max_tokens ?? Math.min(generation.defaultMaxTokens ?? limits.maxTokens, limits.maxTokens, room),
    n: body.n ?? 1,
    sampling,
    stop: body.stop === undefined ? [] : [body.stop].flat(),
    ignoreEos: body.ignore_eos ?? false,
    priority: body.priority ?? 0,
    speculate: body.speculate ?? 0,
    cacheSalt: tenant.salt,
    deadlineMs: limits.timeoutMs,
    ...(generation.shown ? { shown: generation.shown } : {}),
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
