import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'
import type { Contender, Session } from './contender'
import { passes, passTokens } from './contender'

/** node-llama-cpp's own binding, of which batched decoding is used directly: its scheduler would only add to the time. */
interface Bindings {
  readonly AddonModel: new (path: string, options: object) => { init(): Promise<boolean>; dispose(): Promise<void> }
  readonly AddonContext: new (model: object, options: object) => AddonContext
  readonly AddonSampler: new (model: object) => { applyConfig(config: object): void; dispose(): void }
  systemInfo(): string
}

interface AddonContext {
  init(): Promise<boolean>
  dispose(): Promise<void>
  initBatch(size: number): void
  addToBatch(sequence: number, position: number, tokens: Uint32Array, logits: Uint32Array): Uint32Array
  decodeBatch(): Promise<void>
  disposeSequence(sequence: number): void
  sampleToken(
    index: number,
    sampler: object,
    probabilities: boolean,
    confidence: boolean,
    logits: boolean,
  ): Promise<[token: number, probabilities: undefined, confidence: undefined, logits: readonly number[]]>
}

export interface LlamaOptions {
  readonly gguf: string
  readonly threads: number
  readonly flashAttention: boolean
  readonly cache: 'f16' | 'f32'
}

/** ggml's type codes. */
const cacheTypes = { f32: 0, f16: 1 } as const
export const installCommand = 'npm install --prefix benchmarks/peers/llama'

/** llama.cpp's prebuilt library, or why it can't be had: it is no dependency of the workspace. */
export async function openLlama(): Promise<{ bindings: Bindings; version: string } | { missing: string }> {
  const folders = [process.env.LLAMA_PEER, new URL('../../peers/llama/', import.meta.url).pathname]
  for (const folder of folders.filter((f) => f !== undefined)) {
    const require = createRequire(`${folder}/package.json`)
    let path: string
    try {
      path = require.resolve('node-llama-cpp')
    } catch {
      continue
    }
    const { getLlama } = await import(pathToFileURL(path).href)
    const llama = await getLlama({ gpu: false, build: 'never', logLevel: 'error', progressLogs: false })
    const { version } = require(path.replace(/dist\/index\.js$/, 'package.json')) as { version: string }
    return {
      bindings: llama._bindings,
      version: `node-llama-cpp ${version}, llama.cpp ${llama.llamaCppRelease.release}`,
    }
  }
  return { missing: `node-llama-cpp is not installed; ${installCommand} adds it to the comparison.` }
}

/**
 * llama.cpp on the converted checkpoint. Logits stay in its memory while it is timed: that is its best case, since a
 * program that samples in JavaScript has to copy them as the other contenders do.
 */
export async function llamaContender(bindings: Bindings, name: string, options: LlamaOptions): Promise<Contender> {
  const model = new bindings.AddonModel(options.gguf, { gpuLayers: 0, useMmap: false, useMlock: false })
  if (!(await model.init())) throw new Error(`llama.cpp did not load ${options.gguf}.`)
  const open = async (batch: number, length: number) => {
    const context = new bindings.AddonContext(model, {
      contextSize: batch * Math.ceil(length / 256) * 256,
      batchSize: Math.max(passTokens, batch),
      sequences: batch,
      threads: options.threads,
      flashAttention: options.flashAttention,
      kvCacheKeyType: cacheTypes[options.cache],
      kvCacheValueType: cacheTypes[options.cache],
    })
    if (!(await context.init())) throw new Error('llama.cpp did not make a context.')
    return context
  }
  return {
    name,
    async logits(tokens) {
      const context = await open(1, tokens.length)
      context.initBatch(tokens.length)
      const [index] = context.addToBatch(0, 0, Uint32Array.from(tokens), Uint32Array.of(tokens.length - 1))
      await context.decodeBatch()
      const sampler = new bindings.AddonSampler(model)
      sampler.applyConfig({ temperature: 0 })
      const pairs = (await context.sampleToken(index!, sampler, false, false, true))[3]
      const logits = new Float32Array(pairs.length / 2)
      for (let k = 0; k < pairs.length; k += 2) logits[pairs[k]!] = pairs[k + 1]!
      sampler.dispose()
      await context.dispose()
      return logits
    },
    async session(batch, length): Promise<Session> {
      const context = await open(batch, length)
      const one = Uint32Array.of(0)
      let position = 0
      return {
        async prefill(prompts) {
          for (const { first, prompts: run } of passes(prompts)) {
            context.initBatch(run.reduce((sum, prompt) => sum + prompt.length, 0))
            run.forEach((prompt, i) => {
              context.addToBatch(first + i, position, Uint32Array.from(prompt), Uint32Array.of(prompt.length - 1))
            })
            await context.decodeBatch()
          }
          position += prompts[0]!.length
        },
        async decode(tokens) {
          context.initBatch(batch)
          for (let s = 0; s < batch; s++) context.addToBatch(s, position, Uint32Array.of(tokens[s]!), one)
          await context.decodeBatch()
          position++
        },
        reset() {
          for (let s = 0; s < batch; s++) context.disposeSequence(s)
          position = 0
        },
        dispose: () => context.dispose(),
      }
    },
    dispose: () => model.dispose(),
  }
}
