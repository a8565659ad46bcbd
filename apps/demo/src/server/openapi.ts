import type { OpenAPIHono } from '@hono/zod-openapi'
import { z } from '@hono/zod-openapi'
import type { NodeEnv } from './context'
import { ChatRequest, ChatResponse, CompletionRequest, CompletionResponse, ErrorResponse } from './schemas'

/** Describes the API from the schemas that validate it. */
export function describe(app: OpenAPIHono<NodeEnv>): void {
  const json = (schema: z.ZodType, description: string) => ({
    description,
    content: { 'application/json': { schema } },
  })
  const failures = Object.fromEntries(
    Object.entries({ 400: 'Invalid request', 401: 'No valid key', 413: 'Body too large', 429: 'Try later' }).map(
      ([status, text]) => [status, json(ErrorResponse, text)],
    ),
  )
  app.openAPIRegistry.registerComponent('securitySchemes', 'apiKey', { type: 'http', scheme: 'bearer' })
  const post = (path: string, body: z.ZodType, answer: z.ZodType, summary: string) =>
    app.openAPIRegistry.registerPath({
      method: 'post',
      path,
      summary,
      security: [{ apiKey: [] }],
      request: { body: { required: true, content: { 'application/json': { schema: body } } } },
      responses: {
        200: {
          description: 'The answer; with "stream": true as server-sent events.',
          content: { 'application/json': { schema: answer }, 'text/event-stream': { schema: z.string() } },
        },
        ...failures,
      },
    })
  post('/v1/completions', CompletionRequest, CompletionResponse, 'Continue a prompt')
  post('/v1/chat/completions', ChatRequest, ChatResponse, 'Answer a conversation')
  const get = (path: string, summary: string, type = 'application/json') =>
    app.openAPIRegistry.registerPath({
      method: 'get',
      path,
      summary,
      responses: {
        200: {
          description: summary,
          content: { [type]: { schema: type === 'application/json' ? z.object({}) : z.string() } },
        },
      },
    })
  get('/v1/models', 'The model that is served')
  get('/health', 'The process lives')
  get('/ready', 'Requests are taken')
  get('/metrics', 'Prometheus metrics', 'text/plain')
  get('/live', 'The cache as it changes, as server-sent events', 'text/event-stream')
  app.doc31('/openapi.json', {
    openapi: '3.1.0',
    info: { title: 'FlashMLA for TypeScript', version: '1', description: "OpenAI's API over a paged latent cache." },
  })
}
