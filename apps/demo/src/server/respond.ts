import { randomUUID } from 'node:crypto'
import type { RequestListener } from '@flashmla/engine'
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response'
import type { Context } from 'hono'
import type { NodeEnv, ServerContext } from './context'
import { toHttpError } from './errors'
import { EventStream } from './event-stream'
import type { ChoiceEvent, Choices } from './generation'
import type { Usage } from './schemas'

/** A request that is ready to run, and how its events are written down. */
export interface Answer {
  /** Starts it; the listener hears nothing before this has returned. @throws HttpError and the engine's errors */
  readonly start: (listener: RequestListener<ChoiceEvent>) => Choices
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
  /** Called once, when the answer has ended in whatever way. Not called when it could not start. */
  readonly ended: (outcome: 'answered' | 'failed' | 'gone', usage: Usage) => void
}

/** Answers in one piece, or as server-sent events that end with [DONE]. */
export async function respond(
  c: Context<NodeEnv>,
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

async function complete(
  c: Context<NodeEnv>,
  answer: Answer,
  envelope: Envelope,
  options: RespondOptions,
): Promise<Response> {
  const chunks: object[][] = Array.from({ length: answer.count }, () => [])
  const usage = await new Promise<Usage>((resolve, reject) => {
    const choices = answer.start({
      event: (event) => void chunks[event.index]!.push(...answer.chunk(event)),
      end(error) {
        const gone = c.req.raw.signal.aborted
        options.ended(error ? (gone ? 'gone' : 'failed') : 'answered', choices.usage())
        if (error) reject(error)
        else resolve(choices.usage())
      },
    })
  })
  return c.json({ ...envelope, choices: chunks.map(answer.whole), usage })
}

function streamed(
  c: Context<NodeEnv>,
  context: ServerContext,
  answer: Answer,
  envelope: Envelope,
  options: RespondOptions,
): Response {
  const usageField = options.includeUsage ? ',"usage":null' : ''
  // All chunks of an answer begin and end alike: written once, not once a token.
  const head = `${JSON.stringify(envelope).slice(0, -1)},"choices":[`
  const tail = `]${usageField}}`
  const choices = answer.start({
    event(event) {
      for (const choice of answer.chunk(event)) stream.send(head + JSON.stringify(choice) + tail)
    },
    end(error) {
      if (error) {
        const httpError = toHttpError(error)
        if (httpError.status === 500) context.logger.error({ err: error }, 'generation failed')
        stream.send(JSON.stringify(httpError.body))
      } else {
        if (options.includeUsage) stream.send(JSON.stringify({ ...envelope, choices: [], usage: choices.usage() }))
        stream.send('[DONE]')
      }
      stream.end()
      const gone = stream.gone || c.req.raw.signal.aborted
      options.ended(gone ? 'gone' : error ? 'failed' : 'answered', choices.usage())
    },
  })
  const stream = new EventStream(c.env.outgoing, {
    stallMs: context.limits.stallMs,
    pacer: context.pacer,
    onGone: () => choices.cancel(),
  })
  return RESPONSE_ALREADY_SENT
}
