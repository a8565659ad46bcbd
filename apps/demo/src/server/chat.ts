import type { ChatMessage } from '@flashmla/engine'
import type { Tenant } from './access'
import type { ServerContext } from './context'
import type { Generation } from './generation'
import { startGeneration } from './generation'
import type { Answer } from './respond'
import type { ChatBody, Message } from './schemas'

/** A /v1/chat/completions request, ready to run. */
export function chat(context: ServerContext, body: ChatBody, tenant: Tenant, signal: AbortSignal): Answer {
  const prompt = context.tokenizer.encode(context.chat.render(body.messages.map(flatten), body.tools)).ids
  const max_tokens = body.max_completion_tokens ?? body.max_tokens
  const generation: Generation = {
    prompts: [prompt],
    body: { ...body, max_tokens },
    logprobs: body.logprobs ? (body.top_logprobs ?? 0) : undefined,
    tenant,
    signal,
  }
  const named = ({ token, logprob }: { token: number; logprob: number }) => {
    const { vocabulary, tokenizer } = context
    const text = vocabulary.isSpecial(token) ? (tokenizer.id_to_token(token) ?? '') : vocabulary.text([token])
    return { token: text, logprob, bytes: [...vocabulary.bytes(token)] }
  }
  const started = new Set<number>()
  return {
    start: (listener) => startGeneration(context, generation, listener),
    object: 'chat.completion',
    chunkObject: 'chat.completion.chunk',
    idPrefix: 'chatcmpl-',
    count: body.n ?? 1,
    chunk: (event) => {
      const { index } = event
      const chunks: ChatChunk[] = []
      if (!started.has(index)) {
        started.add(index)
        chunks.push({ index, delta: { role: 'assistant', content: '' }, finish_reason: null, logprobs: null })
      }
      if (event.type === 'token') {
        const { token, logprob, top = [] } = event
        const content =
          logprob === undefined ? undefined : [{ ...named({ token, logprob }), top_logprobs: top.map(named) }]
        const logprobs = content ? { content, refusal: null } : null
        if (event.text || logprobs)
          chunks.push({ index, delta: { content: event.text }, finish_reason: null, logprobs })
        return chunks
      }
      chunks.push({
        index,
        delta: event.text ? { content: event.text } : {},
        finish_reason: event.reason,
        logprobs: null,
      })
      return chunks
    },
    whole: (list) => {
      const chunks = list as ChatChunk[]
      const content = chunks.flatMap((chunk) => chunk.logprobs?.content ?? [])
      return {
        index: chunks[0]!.index,
        message: { role: 'assistant', content: chunks.map(({ delta }) => delta.content ?? '').join(''), refusal: null },
        finish_reason: chunks.at(-1)!.finish_reason,
        logprobs: body.logprobs ? { content, refusal: null } : null,
      }
    },
  }
}

interface ChatChunk {
  readonly index: number
  readonly delta: { readonly role?: 'assistant'; readonly content?: string }
  readonly finish_reason: string | null
  readonly logprobs: { readonly content: readonly unknown[]; readonly refusal: null } | null
}

/** The content as one string, and no field that was not given. */
function flatten({ content, ...rest }: Message): ChatMessage {
  const text = Array.isArray(content) ? content.map((part) => part.text).join('') : (content ?? '')
  const given = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== undefined))
  return { ...given, role: rest.role, content: text }
}
