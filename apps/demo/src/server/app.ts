import { readFile } from 'node:fs/promises'
import { extname, join, normalize, sep } from 'node:path'
import { OpenAPIHono, type z } from '@hono/zod-openapi'
import type { Context } from 'hono'
import { bodyLimit } from 'hono/body-limit'
import type { Tenant } from './access'
import { chat } from './chat'
import { completions } from './completions'
import type { NodeEnv, ServerContext } from './context'
import { HttpError, toHttpError } from './errors'
import { live } from './live'
import { describe } from './openapi'
import type { Answer } from './respond'
import { respond } from './respond'
import type { ChatBody, CompletionBody } from './schemas'
import { ChatRequest, CompletionRequest } from './schemas'

type Start<Body> = (context: ServerContext, body: Body, tenant: Tenant, signal: AbortSignal) => Promise<Answer>

/** The HTTP surface: OpenAI's API, health and metrics, and the page. */
export function createApp(context: ServerContext): OpenAPIHono<NodeEnv> {
  const { model, access, limits, metrics, logger } = context
  const app = new OpenAPIHono<NodeEnv>()

  app.use(async (c, next) => {
    const started = performance.now()
    await next()
    const { method, path } = c.req
    // 499, as proxies count it: the client left before its answer.
    const status = c.req.raw.signal.aborted ? 499 : c.res.status
    const route = app.routes.some((each) => each.path === path) ? path : 'other'
    metrics.requests.inc({ method, route, status: String(status) })
    const milliseconds = Math.round(performance.now() - started)
    if (path.startsWith('/v1/')) logger.info({ method, path, status, milliseconds }, 'answered')
    else logger.debug({ method, path, status, milliseconds }, 'answered')
  })
  app.onError((error, c) => {
    const httpError = toHttpError(error)
    if (httpError.status === 500) logger.error({ err: error, path: c.req.path }, 'request failed')
    const { retryAfter } = httpError.details
    if (retryAfter !== undefined) c.header('Retry-After', String(retryAfter))
    if (httpError.status === 401) c.header('WWW-Authenticate', 'Bearer')
    return c.json(httpError.body, httpError.status)
  })
  app.notFound((c) => {
    throw new HttpError(404, `There is no ${c.req.method} ${c.req.path} here. See /openapi.json.`, {
      code: 'not_found',
    })
  })

  app.get('/health', (c) => c.json({ status: 'ok' }))
  app.get('/ready', (c) =>
    c.json({ status: context.draining() ? 'draining' : 'ready' }, context.draining() ? 503 : 200),
  )
  app.get('/metrics', async (c) =>
    c.text(await metrics.registry.metrics(), 200, { 'Content-Type': metrics.registry.contentType }),
  )

  const tenantOf = (c: Context<NodeEnv>) => access.tenant(c.req.header('Authorization'))
  const card = { id: model.id, object: 'model', created: model.created, owned_by: 'flashmla' }
  app.get('/v1/models', (c) => {
    tenantOf(c)
    return c.json({ object: 'list', data: [card] })
  })
  app.get('/v1/models/:id{.+}', (c) => {
    tenantOf(c)
    checkModel(c.req.param('id'), model.id)
    return c.json(card)
  })
  app.get('/live', (c) => {
    tenantOf(c)
    return live(c, context)
  })
  app.post('/v1/embeddings', (c) => {
    tenantOf(c)
    throw new HttpError(400, 'Embeddings are not supported: the model served here generates text.', {
      code: 'unsupported',
    })
  })

  const tooLarge = bodyLimit({
    maxSize: limits.maxBodyBytes,
    onError: () => {
      throw new HttpError(413, `The body is larger than ${limits.maxBodyBytes} bytes.`, { code: 'body_too_large' })
    },
  })
  const generate =
    <Body extends CompletionBody | ChatBody>(schema: z.ZodType<Body>, start: Start<Body>) =>
    async (c: Context<NodeEnv>): Promise<Response> => {
      const tenant = tenantOf(c)
      if (context.draining()) throw new HttpError(503, 'The server is going down.', { code: 'draining', retryAfter: 1 })
      const body = parse(schema, await readJson(c))
      if (body.model !== undefined) checkModel(body.model, model.id)
      const leave = access.enter(tenant)
      try {
        const answer = await start(context, body, tenant, c.req.raw.signal)
        const started = performance.now()
        return await respond(c, context, answer, {
          stream: body.stream ?? false,
          includeUsage: body.stream_options?.include_usage ?? false,
          ended: (outcome, { prompt_tokens, completion_tokens, prompt_tokens_details }) => {
            leave()
            const milliseconds = Math.round(performance.now() - started)
            const text = context.logPrompts ? { request: 'prompt' in body ? body.prompt : body.messages } : {}
            const tokens = {
              prompt: prompt_tokens,
              cached: prompt_tokens_details.cached_tokens,
              generated: completion_tokens,
            }
            logger.info({ tenant: tenant.id, outcome, tokens, milliseconds, ...text }, 'generation ended')
          },
        })
      } catch (error) {
        leave()
        throw error
      }
    }
  app.post('/v1/completions', tooLarge, generate(CompletionRequest, completions))
  app.post('/v1/chat/completions', tooLarge, generate(ChatRequest, chat))

  describe(app)
  if (context.webRoot) servePage(app, context.webRoot)
  return app
}

async function readJson(c: Context<NodeEnv>): Promise<unknown> {
  const text = await c.req.text().catch(() => {
    throw new HttpError(400, 'The body ended early. Send as many bytes as Content-Length says.', {
      code: 'invalid_json',
    })
  })
  try {
    return JSON.parse(text)
  } catch (error) {
    throw new HttpError(400, `The body is not JSON: ${(error as Error).message}`, { code: 'invalid_json' })
  }
}

function parse<T>(schema: z.ZodType<T>, value: unknown): T {
  const result = schema.safeParse(value)
  if (result.success) return result.data
  const issue = result.error.issues[0]!
  const param = issue.path.join('.') || null
  throw new HttpError(400, `${param ?? 'The body'}: ${issue.message}`, {
    code: 'invalid_value',
    ...(param ? { param } : {}),
  })
}

function checkModel(asked: string, served: string): void {
  if (asked !== served)
    throw new HttpError(404, `The model "${asked}" is not served here; "${served}" is.`, {
      code: 'model_not_found',
      param: 'model',
    })
}

const types: Record<string, string> = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.svg': 'image/svg+xml',
  '.map': 'application/json',
}

function servePage(app: OpenAPIHono<NodeEnv>, root: string): void {
  app.get('/*', async (c, next) => {
    const path = normalize(c.req.path === '/' ? '/index.html' : c.req.path)
    const type = types[extname(path)]
    if (!type || path.split(sep).includes('..')) return next()
    const content = await readFile(join(root, path)).catch(() => undefined)
    if (!content) return next()
    return c.body(new Uint8Array(content), 200, {
      'Content-Type': type,
      'Cache-Control': 'no-cache',
      'Content-Security-Policy': "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:",
      'X-Content-Type-Options': 'nosniff',
    })
  })
}
