import type { Tenant } from './access'
import type { ServerContext } from './context'
import { HttpError } from './errors'
import type { Generation } from './generation'
import { startGeneration } from './generation'
import type { Answer } from './respond'
import type { CompletionBody } from './schemas'

/** A /v1/completions request, ready to run. */
export async function completions(
  context: ServerContext,
  body: CompletionBody,
  tenant: Tenant,
  signal: AbortSignal,
): Promise<Answer> {
  if (body.suffix)
    throw new HttpError(400, 'suffix is not supported: the models served here only continue.', { param: 'suffix' })
  if (body.best_of !== undefined && body.best_of !== (body.n ?? 1))
    throw new HttpError(400, 'best_of other than n is not supported.', { param: 'best_of' })
  if (body.echo && body.logprobs !== undefined)
    throw new HttpError(400, 'logprobs of an echoed prompt are not supported. Leave out echo or logprobs.', {
      param: 'logprobs',
    })
  const given = promptsOf(body.prompt)
  const prompts = await Promise.all(
    given.map((each) => (typeof each === 'string' ? context.prompts.encode(each, signal) : each)),
  )
  if (prompts.some((ids) => ids.length === 0)) throw new HttpError(400, 'The prompt is empty.', { param: 'prompt' })
  const n = body.n ?? 1
  const echoes = given.map((each) =>
    body.echo ? (typeof each === 'string' ? each : context.vocabulary.text(each)) : '',
  )
  const generation: Generation = {
    prompts,
    body,
    fields: { prompt: 'prompt', maxTokens: 'max_tokens' },
    defaultMaxTokens: 16,
    logprobs: body.logprobs,
    tenant,
    signal,
  }
  const logprobs = (event: LogprobSource | undefined, offset: number) => {
    if (body.logprobs === undefined || event?.logprob === undefined) return null
    const top = Object.fromEntries((event.top ?? []).map(({ token, logprob }) => [name(context, token), logprob]))
    return {
      tokens: [name(context, event.token)],
      token_logprobs: [event.logprob],
      top_logprobs: [top],
      text_offset: [offset],
    }
  }
  const offsets = new Map<number, number>()
  const seen = new Set<number>()
  return {
    start: (listener) => startGeneration(context, generation, listener),
    object: 'text_completion',
    chunkObject: 'text_completion',
    idPrefix: 'cmpl-',
    count: prompts.length * n,
    chunk: (event) => {
      const { index } = event
      const echo = seen.has(index) ? '' : echoes[Math.floor(index / n)]!
      seen.add(index)
      const offset = offsets.get(index) ?? echo.length
      offsets.set(index, offset + event.text.length)
      const finish_reason = event.type === 'finish' ? event.reason : null
      const token = event.type === 'token' ? event : undefined
      return [{ index, text: echo + event.text, finish_reason, logprobs: logprobs(token, offset) }]
    },
    whole: (chunks) => {
      const parts = chunks as CompletionChunk[]
      const lists = parts.flatMap((part) => part.logprobs ?? [])
      return {
        index: parts[0]!.index,
        text: parts.map((part) => part.text).join(''),
        finish_reason: parts.at(-1)!.finish_reason,
        logprobs:
          body.logprobs === undefined
            ? null
            : {
                tokens: lists.flatMap((list) => list.tokens),
                token_logprobs: lists.flatMap((list) => list.token_logprobs),
                top_logprobs: lists.flatMap((list) => list.top_logprobs),
                text_offset: lists.flatMap((list) => list.text_offset),
              },
      }
    },
  }
}

interface LogprobSource {
  readonly token: number
  readonly logprob?: number
  readonly top?: readonly { readonly token: number; readonly logprob: number }[]
}

interface CompletionChunk {
  readonly index: number
  readonly text: string
  readonly finish_reason: string | null
  readonly logprobs: {
    tokens: string[]
    token_logprobs: number[]
    top_logprobs: Record<string, number>[]
    text_offset: number[]
  } | null
}

function name({ vocabulary }: ServerContext, token: number): string {
  return vocabulary.isSpecial(token) ? vocabulary.specialText(token) : vocabulary.text([token])
}

/** The prompts as they were given: texts, or token ids. */
function promptsOf(prompt: CompletionBody['prompt']): (string | number[])[] {
  if (typeof prompt === 'string') return [prompt]
  return typeof prompt[0] === 'number' ? [prompt as number[]] : (prompt as string[] | number[][])
}
