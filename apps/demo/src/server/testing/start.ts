import { ChatTemplate, type EngineOptions, LlmEngine, loadTokenizer } from '@flashmla/engine'
import { modelDirectory } from '@flashmla/tiny-mla'
import { type RunningServer, type ServerOptions, startServer } from '../server'
import { StubModel, type StubOptions } from './stub-model'

export interface TestServer extends RunningServer {
  readonly engine: LlmEngine
  readonly post: (path: string, body: unknown, init?: RequestInit) => Promise<Response>
}

/** A server over the stub model with the embedded model's tokenizer, on a free port. */
export async function startTestServer(
  options: Partial<ServerOptions> & { stub?: StubOptions; engineOptions?: EngineOptions } = {},
): Promise<TestServer> {
  const engine = options.engine ?? new LlmEngine(new StubModel(options.stub), options.engineOptions)
  const server = await startServer({
    tokenizer: await loadTokenizer(modelDirectory),
    tokenizerDirectory: modelDirectory,
    chat: await ChatTemplate.load(modelDirectory),
    model: {
      id: 'stub',
      created: 1,
      backend: 'stub',
      maxPositions: 1024,
      latentBytesPerToken: 11520,
      mhaBytesPerToken: 30720,
    },
    port: 0,
    ...options,
    engine,
  })
  const post = (path: string, body: unknown, init: RequestInit = {}) =>
    fetch(server.url + path, {
      method: 'POST',
      body: typeof body === 'string' ? body : JSON.stringify(body),
      ...init,
      headers: { 'Content-Type': 'application/json', ...init.headers },
    })
  return { ...server, engine, post }
}

/** Waits until the engine holds no work, then checks that every page is free or only remembered. */
export async function pagesLeaked(engine: LlmEngine): Promise<number> {
  await engine.idle()
  const violations = engine.violations()
  if (violations.length > 0) throw new Error(violations.join('\n'))
  const { used } = engine.stats().pages
  engine.clearCache()
  return Math.max(used, engine.model.pool.numBlocks - engine.model.pool.numFree)
}
