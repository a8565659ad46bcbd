import type { OpenAPIHono } from '@hono/zod-openapi'
import { z } from '@hono/zod-openapi'
import type { NodeEnv } from './context'
import {
  ChatRequest,
  ChatResponse,
  CompletionRequest,
  CompletionResponse,
  ErrorResponse,
  ModelCard,
  ModelList,
} from './schemas'

const refusals = {
  400: 'Invalid request',
  401: 'No valid key',
  404: 'No such model',
  408: 'Past the deadline',
  413: 'Body too large',
  429: 'Queue full, or too many requests of this key; Retry-After tells when to ask again',
  503: 'Going down; Retry-After tells when to ask again',
}

/** Describes the API from the schemas that validate it. */
export function describe(app: OpenAPIHono<NodeEnv>): void {
  const json = (schema: z.ZodType, description: string) => ({
    description,
    content: { 'application/json': { schema } },
  })
  const failures = (...statuses: (keyof typeof refusals)[]) =>
    Object.fromEntries(statuses.map((status) => [status, json(ErrorResponse, refusals[status])]))
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
        ...failures(400, 401, 404, 408, 413, 429, 503),
      },
    })
  post('/v1/completions', CompletionRequest, CompletionResponse, 'Continue a prompt')
  post('/v1/chat/completions', ChatRequest, ChatResponse, 'Answer a conversation')
  app.openAPIRegistry.registerPath({
    method: 'post',
    path: '/v1/embeddings',
    summary: 'Not supported: the model served generates text',
    security: [{ apiKey: [] }],
    responses: failures(400, 401),
  })
  app.openAPIRegistry.registerPath({
    method: 'get',
    path: '/v1/models/{id}',
    summary: 'One model',
    security: [{ apiKey: [] }],
    request: { params: z.object({ id: z.string() }) },
    responses: { 200: json(ModelCard, 'The model'), ...failures(401, 404) },
  })
  app.openAPIRegistry.registerPath({
    method: 'get',
    path: '/v1/models',
    summary: 'The model that is served',
    security: [{ apiKey: [] }],
    responses: { 200: json(ModelList, 'A list of one'), ...failures(401) },
  })
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
  get('/health', 'The process lives')
  get('/ready', 'Requests are taken')
  get('/metrics', 'Prometheus metrics', 'text/plain')
  get('/live', 'The cache as it changes, as server-sent events', 'text/event-stream')
  app.doc31('/openapi.json', {
    openapi: '3.1.0',
    info: { title: 'FlashMLA for TypeScript', version: '1', description: "OpenAI's API over a paged latent cache." },
  })
}
