import type { ChatTemplate, LlmEngine, TokenGrammar, ToolFormat, ToolSpec, Vocabulary } from '@flashmla/engine'
import type { HttpBindings } from '@hono/node-server'
import type { Logger } from 'pino'
import type { Access } from './access'
import type { Metrics } from './metrics'
import type { PromptEncoder } from './prompt-encoder'
import type { WritePacer } from './write-pacer'

export interface Limits {
  /** Bytes of a request body. */
  readonly maxBodyBytes: number
  /** New tokens of one sample. */
  readonly maxTokens: number
  /** Requests of one key at a time. */
  readonly maxConcurrent: number
  /** Milliseconds that a request may take. */
  readonly timeoutMs: number
  /** Milliseconds that a client may leave a streamed piece unread. */
  readonly stallMs: number
  /** Milliseconds that a streamed token may wait for the next ones, to be written with them; 0 writes after every step. */
  readonly flushMs: number
}

/** What the routes work with. */
export interface ServerContext {
  readonly engine: LlmEngine
  readonly prompts: PromptEncoder
  readonly vocabulary: Vocabulary
  readonly grammar: (format: GrammarFormat) => TokenGrammar
  readonly chat: ChatTemplate
  readonly model: ServedModel
  readonly access: Access
  readonly limits: Limits
  readonly metrics: Metrics
  readonly pacer: WritePacer
  readonly logger: Logger
  /** Folder of the built page; none is served without it. */
  readonly webRoot: string | undefined
  readonly logPrompts: boolean
  /** True once the server is going down: it finishes what it has and takes nothing new. */
  readonly draining: () => boolean
}

export type GrammarFormat =
  | { readonly type: 'json_object' }
  | { readonly type: 'json_schema'; readonly schema: unknown }
  | { readonly type: 'tool_call'; readonly format: ToolFormat; readonly tools: readonly ToolSpec[] }

export interface ServedModel {
  readonly id: string
  readonly created: number
  readonly backend: string
  readonly maxPositions: number
  /** Bytes of one token over all layers, in this cache and in one of full keys and values. */
  readonly latentBytesPerToken: number
  readonly mhaBytesPerToken: number
}

/** The bindings that Node's server gives each request. */
export interface NodeEnv {
  readonly Bindings: HttpBindings
}
