import type { ChatMessage, ToolFormat } from '@flashmla/engine'
import type { Tenant } from './access'
import type { ServerContext } from './context'
import type { Generation } from './generation'
import { startGeneration } from './generation'
import type { Answer } from './respond'
import type { ChatBody, Message } from './schemas'
import type { ToolCallDelta } from './tool-use'
import { pastCall, planToolUse } from './tool-use'

/** A /v1/chat/completions request, ready to run. */
export async function chat(
  context: ServerContext,
  body: ChatBody,
  tenant: Tenant,
  signal: AbortSignal,
): Promise<Answer> {
  const calling = planToolUse(context.chat.source, body)
  const messages = body.messages.map((message) => flatten(message, calling?.format))
  const rendered = context.chat.render(messages, calling?.tools) + (calling?.begin ?? '')
  const generation: Generation = {
    prompts: [await context.prompts.encode(rendered, signal)],
    body: { ...body, max_tokens: body.max_completion_tokens ?? body.max_tokens },
    fields: {
      prompt: 'messages',
      maxTokens: body.max_completion_tokens === undefined ? 'max_tokens' : 'max_completion_tokens',
    },
    logprobs: body.logprobs ? (body.top_logprobs ?? 0) : undefined,
    tenant,
    signal,
    ...(calling ? { shown: calling.shown } : {}),
    ...(calling?.follow ? { follow: calling.follow } : {}),
  }
  const named = ({ token, logprob }: { token: number; logprob: number }) => {
    const { vocabulary } = context
    const text = vocabulary.isSpecial(token) ? vocabulary.specialText(token) : vocabulary.text([token])
    return { token: text, logprob, bytes: [...vocabulary.bytes(token)] }
  }
  const count = body.n ?? 1
  const started = new Set<number>()
  const readers = Array.from({ length: count }, () => calling?.reader())
  return {
    start: (listener) => startGeneration(context, generation, listener),
    object: 'chat.completion',
    chunkObject: 'chat.completion.chunk',
    idPrefix: 'chatcmpl-',
    count,
    chunk: (event) => {
      const { index } = event
      const chunks: ChatChunk[] = []
      const say = (
        delta: ChatChunk['delta'],
        finish_reason: string | null = null,
        logprobs: ChatChunk['logprobs'] = null,
      ) => chunks.push({ index, delta, finish_reason, logprobs })
      if (!started.has(index)) {
        started.add(index)
        say({ role: 'assistant', content: '' })
      }
      const reader = readers[index]
      const { text, calls } = reader?.read(event) ?? { text: event.text, calls: [] }
      if (event.type === 'token') {
        const { token, logprob, top = [] } = event
        const content =
          logprob === undefined ? undefined : [{ ...named({ token, logprob }), top_logprobs: top.map(named) }]
        if (text || content) say({ content: text }, null, content ? { content, refusal: null } : null)
        if (calls.length > 0) say({ tool_calls: calls })
        return chunks
      }
      if (calls.length > 0) say({ tool_calls: calls })
      say(text ? { content: text } : {}, reader?.called && event.reason === 'stop' ? 'tool_calls' : event.reason)
      return chunks
    },
    whole: (list) => {
      const chunks = list as ChatChunk[]
      const logged = chunks.flatMap((chunk) => chunk.logprobs?.content ?? [])
      const content = chunks.map(({ delta }) => delta.content ?? '').join('')
      const calls = chunks.flatMap(({ delta }) => delta.tool_calls ?? []).map(({ index: _, ...call }) => call)
      return {
        index: chunks[0]!.index,
        message: {
          role: 'assistant',
          content: calls.length > 0 ? content || null : content,
          refusal: null,
          ...(calls.length > 0 ? { tool_calls: calls } : {}),
        },
        finish_reason: chunks.at(-1)!.finish_reason,
        logprobs: body.logprobs ? { content: logged, refusal: null } : null,
      }
    },
  }
}

interface ChatChunk {
  readonly index: number
  readonly delta: {
    readonly role?: 'assistant'
    readonly content?: string
    readonly tool_calls?: readonly ToolCallDelta[]
  }
  readonly finish_reason: string | null
  readonly logprobs: { readonly content: readonly unknown[]; readonly refusal: null } | null
}

/** The content as one string, past calls as the template takes them, and no field that was not given. */
function flatten({ content, tool_calls, ...rest }: Message, format: ToolFormat | undefined): ChatMessage {
  const text = Array.isArray(content) ? content.map((part) => part.text).join('') : (content ?? '')
  const given = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== undefined))
  const calls = tool_calls ? { tool_calls: tool_calls.map((call) => pastCall(call, format)) } : {}
  return { ...given, ...calls, role: rest.role, content: text }
}
