import { createRequire } from 'node:module'
import { Worker } from 'node:worker_threads'
import { AbortedError } from '@flashmla/spec'
import type { Tokenizer } from '@huggingface/tokenizers'

/** Characters of a text that is encoded in place; a longer one would hold up everybody's tokens for more than some 50 ms. */
const SHORT = 16_384

/** The thread: a tokenizer of its own out of the same folder, and answers in the order of the questions. */
const THREAD = `
const { parentPort, workerData } = require('node:worker_threads')
const { loadTokenizer } = require(workerData.engine)
const tokenizer = loadTokenizer(workerData.directory)
tokenizer.catch(() => {})
parentPort.on('message', async (text) => {
  try {
    const ids = Int32Array.from((await tokenizer).encode(text).ids)
    parentPort.postMessage({ ids }, [ids.buffer])
  } catch (error) {
    parentPort.postMessage({ failed: String(error) })
  }
})`

interface Waiting {
  readonly resolve: (ids: readonly number[]) => void
  readonly reject: (error: Error) => void
}

/** Turns prompts into tokens, long ones on a thread that starts with the first of them. */
export class PromptEncoder {
  #thread: Worker | undefined
  readonly #waiting: Waiting[] = []
  #disposed = false

  /** `directory`: where the tokenizer comes from; without it every text is encoded in place. */
  constructor(
    private readonly tokenizer: Tokenizer,
    private readonly directory: string | undefined,
  ) {}

  /** @throws AbortedError when the client has left meanwhile, or the encoder is disposed of */
  async encode(text: string, signal: AbortSignal): Promise<readonly number[]> {
    if (this.#disposed) throw new AbortedError('A request to a server that has closed')
    if (this.directory === undefined || text.length <= SHORT) return this.tokenizer.encode(text).ids
    this.#thread ??= this.#start(this.directory)
    const thread = this.#thread
    const ids = await new Promise<readonly number[]>((resolve, reject) => {
      this.#waiting.push({ resolve, reject })
      thread.postMessage(text)
    })
    if (signal.aborted) throw new AbortedError('A request whose client has left')
    return ids
  }

  dispose(): void {
    this.#disposed = true
    void this.#thread?.terminate()
    this.#end(new AbortedError('A request whose prompt was being read'))
  }

  #start(directory: string): Worker {
    const engine = createRequire(import.meta.url).resolve('@flashmla/engine')
    const thread = new Worker(THREAD, { eval: true, workerData: { engine, directory }, execArgv: [], stdin: false })
    thread.on('message', ({ ids, failed }: { ids?: Int32Array; failed?: string }) => {
      const { resolve, reject } = this.#waiting.shift()!
      if (ids) resolve([...ids])
      else reject(new Error(`The prompt could not be encoded: ${failed}`))
    })
    thread.on('error', (error) => this.#end(error))
    thread.unref()
    return thread
  }

  /** The next long prompt starts a new thread. */
  #end(error: Error): void {
    this.#thread = undefined
    for (const { reject } of this.#waiting.splice(0)) reject(error)
  }
}
