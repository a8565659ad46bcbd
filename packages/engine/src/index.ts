/**
 * Reads DeepSeek-architecture checkpoints and generates text over a paged latent cache.
 *
 * @example
 * import { ReferenceBackend } from '@flashmla/cpu'
 * import { generateText, loadTokenizer, Model } from '@flashmla/engine'
 * import { modelDirectory } from '@flashmla/tiny-mla'
 * const model = await Model.load(modelDirectory, { backend: new ReferenceBackend() })
 * const tokenizer = await loadTokenizer(modelDirectory)
 * for await (const { text } of generateText(model, tokenizer, 'The sea', { maxTokens: 32 })) process.stdout.write(text)
 */

export type { CacheFormatName } from './cache-formats'
export type { ChatMessage } from './chat-template'
export { ChatTemplate } from './chat-template'
export { Checkpoint } from './checkpoint/checkpoint'
export { encodeSafetensors } from './checkpoint/encode'
export type { GenerateOptions, GenerateTextOptions } from './generate'
export { generate, generateText } from './generate'
export { jsonObject, jsonSchemaRule } from './grammar/json-schema'
export type { Rule } from './grammar/rule'
export { TokenGrammar, TokenTrie } from './grammar/token-grammar'
export type { TokenizerVocabulary } from './grammar/vocabulary'
export { Vocabulary } from './grammar/vocabulary'
export type { ModelOptions } from './model'
export { Model } from './model'
export type { Drafter } from './scheduler/drafter'
export { PromptLookupDrafter } from './scheduler/drafter'
export { LlmEngine } from './scheduler/engine'
export type { EngineOptions, StepModel } from './scheduler/options'
export type {
  FinishEvent,
  FinishReason,
  GenerationRequest,
  RequestEvent,
  RequestHandle,
  RequestListener,
  RunningRequest,
  TokenConstraint,
  TokenEvent,
} from './scheduler/request'
export type { SamplingParams } from './scheduler/sampler'
export { uniform } from './scheduler/sampler'
export type { EngineStats, PageMap, StepReport } from './scheduler/stats'
export type { TextEvent, TextFinishEvent, TextRequest } from './scheduler/text'
export { startText, streamText } from './scheduler/text'
export type { DrawInput, StepInput } from './step'
export { loadTokenizer } from './tokenizer'
export type { ParsedPiece } from './tools/tool-call-parser'
export { ToolCallParser } from './tools/tool-call-parser'
export type { ToolCall, ToolFormat, ToolSpec } from './tools/tool-format'
export { forcedCall, toolFormat, toolMarkers } from './tools/tool-format'
