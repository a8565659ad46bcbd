import { randomUUID } from 'node:crypto'
import type { Context } from 'hono'
import type { ServerContext } from './context'
import { toHttpError } from './errors'
import { eventStream } from './event-stream'
import type { ChoiceEvent, Choices } from './generation'

/** A running request and how its events are written down. */
export interface Answer {
  readonly choices: Choices
  readonly object: string
  readonly chunkObject: string
  readonly idPrefix: string
  /** Choices in all. */
  readonly count: number
  /** The streamed choices that an event gives rise to. */
  readonly chunk: (event: ChoiceEvent) => object[]
  /** A whole choice out of all its chunks. */
  readonly whole: (chunks: readonly object[]) => object
}

interface Envelope {
  readonly id: string
  readonly object: string
  readonly created: number
  readonly model: string
}

export interface RespondOptions {
  readonly stream: boolean
  readonly includeUsage: boolean
  /** Called once, when the answer has ended in whatever way. */
  readonly ended: (outcome: 'answered' | 'failed' | 'gone') => void
}

/** Answers in one piece, or as server-sent events that end with [DONE]. */
export async function respond(
  c: Context,
  context: ServerContext,
  answer: Answer,
  options: RespondOptions,
): Promise<Response> {
  const envelope: Envelope = {
    id: `${answer.idPrefix}${randomUUID()}`,
    object: options.stream ? answer.chunkObject : answer.object,
    created: Math.floor(Date.now() / 1000),
    model: context.model.id,
  }
  return options.stream ? streamed(c, context, answer, envelope, options) : complete(c, answer, envelope, options)
}

async function complete(c: Context, answer: Answer, envelope: Envelope, options: RespondOptions): Promise<Response> {
  const chunks: object[][] = Array.from({ length: answer.count }, () => [])
  try {
    for await (const event of answer.choices.events) chunks[event.index]!.push(...answer.chunk(event))
  } catch (error) {
    options.ended('failed')
    throw error
  } finally {
    answer.choices.cancel()
  }
  options.ended('answered')
  return c.json({ ...envelope, choices: chunks.map(answer.whole), usage: answer.choices.usage() })
}

function streamed(
  c: Context,
  context: ServerContext,
  answer: Answer,
  envelope: Envelope,
  options: RespondOptions,
): Response {
  const usageField = options.includeUsage ? ',"usage":null' : ''
  // All chunks of an answer begin and end alike: written once, not once a token.
  const head = `${JSON.stringify(envelope).slice(0, -1)},"choices":[`
  const tail = `]${usageField}}`
  const body = eventStream(
    context.limits.stallMs,
    () => answer.choices.cancel(),
    async (stream) => {
      let outcome: 'answered' | 'failed' | 'gone' = 'gone'
      try {
        for await (const event of answer.choices.events) {
          for (const choice of answer.chunk(event)) await stream.send(head + JSON.stringify(choice) + tail)
          if (stream.gone) return
        }
        if (options.includeUsage) {
          await stream.send(JSON.stringify({ ...envelope, choices: [], usage: answer.choices.usage() }))
        }
        await stream.send('[DONE]')
        outcome = 'answered'
      } catch (error) {
        if (stream.gone) return
        outcome = 'failed'
        const httpError = toHttpError(error)
        if (httpError.status === 500) context.logger.error({ err: error }, 'generation failed')
        await stream.send(JSON.stringify(httpError.body))
      } finally {
        answer.choices.cancel()
        options.ended(outcome)
      }
    },
  )
  return c.body(body, 200, {
    'Content-Type': 'text/event-stream',
    'Cache-Control': 'no-cache',
    Connection: 'keep-alive',
    'X-Accel-Buffering': 'no',
  })
}
