import type { IncomingMessage, ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { type ChatTemplate, type LlmEngine, Vocabulary } from '@flashmla/engine'
import { type ServerType, serve } from '@hono/node-server'
import type { Tokenizer } from '@huggingface/tokenizers'
import pino, { type Logger } from 'pino'
import { Access } from './access'
import { createApp } from './app'
import type { Limits, ServedModel, ServerContext } from './context'
import { grammarCache } from './grammars'
import { Metrics } from './metrics'
import { PromptEncoder } from './prompt-encoder'
import { WritePacer } from './write-pacer'

export interface ServerOptions {
  readonly engine: LlmEngine
  readonly tokenizer: Tokenizer
  /** Folder of the tokenizer: long prompts are encoded on a thread that reads it again. */
  readonly tokenizerDirectory?: string
  readonly chat: ChatTemplate
  readonly model: ServedModel
  readonly host?: string
  /** 0 takes any free port. */
  readonly port?: number
  /** Without any, everyone may ask. */
  readonly apiKeys?: readonly string[]
  readonly limits?: Partial<Limits>
  readonly webRoot?: string
  readonly logger?: Logger
  readonly logPrompts?: boolean
}

export const defaultLimits: Limits = {
  maxBodyBytes: 1 << 20,
  maxTokens: 4096,
  maxConcurrent: 64,
  timeoutMs: 600_000,
  stallMs: 30_000,
  flushMs: 25,
}

export interface RunningServer {
  readonly url: string
  /** Takes nothing new, lets what runs end for at most `graceMs`, cancels the rest and closes. */
  close(graceMs?: number): Promise<void>
}

/** Starts to listen. @throws the error of listen(), such as a port in use */
export async function startServer(options: ServerOptions): Promise<RunningServer> {
  const { engine, tokenizer, host = '127.0.0.1', port = 8000 } = options
  const limits = { ...defaultLimits, ...options.limits }
  const vocabulary = new Vocabulary(tokenizer, engine.model.config.vocabSize)
  const access = new Access(options.apiKeys ?? [], limits.maxConcurrent)
  const prompts = new PromptEncoder(tokenizer, options.tokenizerDirectory)
  let draining = false
  const context: ServerContext = {
    engine,
    prompts,
    vocabulary,
    grammar: grammarCache(vocabulary, engine.model.config.eosTokenIds),
    chat: options.chat,
    model: options.model,
    access,
    limits,
    metrics: new Metrics(engine),
    pacer: new WritePacer(engine, limits.flushMs),
    logger: options.logger ?? pino({ level: 'silent' }),
    webRoot: options.webRoot,
    logPrompts: options.logPrompts ?? false,
    draining: () => draining,
  }
  const app = createApp(context)
  const server = await new Promise<ServerType>((resolve, reject) => {
    const started = serve({ fetch: app.fetch, hostname: host, port }, () => resolve(started))
    started.once('error', reject)
  })
  const unsent = new Set<ServerResponse>()
  server.on('request', (_: IncomingMessage, response: ServerResponse) => {
    unsent.add(response)
    response.once('close', () => unsent.delete(response))
  })
  const address = server.address() as AddressInfo
  const shown = address.family === 'IPv6' ? `[${address.address}]` : address.address
  return {
    url: `http://${shown}:${address.port}`,
    async close(graceMs = 30_000) {
      draining = true
      const grace = new Promise((resolve) => setTimeout(resolve, graceMs).unref())
      // Still listening: who asks meanwhile is told to try again, and /ready says why.
      await Promise.race([until(() => access.running === 0), grace])
      prompts.dispose()
      await engine.dispose()
      // Answers that were just finished are still on their way out, and close() would cut them.
      const last = [...unsent]
      await Promise.race([until(() => !last.some((each) => unsent.has(each))), grace])
      const closed = new Promise<void>((resolve) => server.close(() => resolve()))
      if ('closeAllConnections' in server) {
        await Promise.race([closed, new Promise((resolve) => setTimeout(resolve, 200).unref())])
        server.closeAllConnections()
      }
      await closed
    },
  }
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 20))
}
