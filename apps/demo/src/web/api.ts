import { serverEvents } from './events'

export interface Settings {
  readonly temperature: number
  readonly topP: number
  readonly maxTokens: number
  readonly seed: string
  readonly n: number
  readonly apiKey: string
}

export interface Turn {
  readonly role: 'user' | 'assistant'
  readonly content: string
}

export function headers(apiKey: string): Record<string, string> {
  return { 'Content-Type': 'application/json', ...(apiKey ? { Authorization: `Bearer ${apiKey}` } : {}) }
}

/** Streams an answer piece by piece, each with the choice that it belongs to. Throws with the server's own message. */
export async function* ask(
  input: { readonly prompt: string | readonly string[] } | { readonly messages: readonly Turn[] },
  settings: Settings,
  signal: AbortSignal,
): AsyncGenerator<{ index: number; text: string }> {
  const { temperature, topP, maxTokens, seed, n, apiKey } = settings
  const response = await fetch('prompt' in input ? '/v1/completions' : '/v1/chat/completions', {
    method: 'POST',
    signal,
    headers: headers(apiKey),
    body: JSON.stringify({
      ...input,
      stream: true,
      temperature,
      top_p: topP,
      max_tokens: maxTokens,
      n,
      ...(seed === '' ? {} : { seed: Number(seed) }),
    }),
  })
  if (!response.ok) throw new Error((await response.json()).error.message)
  for await (const data of serverEvents(response)) {
    if (data === '[DONE]') return
    const event = JSON.parse(data)
    if (event.error) throw new Error(event.error.message)
    for (const { index, text, delta } of event.choices) yield { index, text: text ?? delta?.content ?? '' }
  }
}
