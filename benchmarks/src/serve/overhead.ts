import { Worker } from 'node:worker_threads'
import { ChatTemplate, LlmEngine, loadTokenizer, type StepModel } from '@flashmla/engine'
import { modelDirectory } from '@flashmla/tiny-mla'
import { startServer } from '../../../apps/demo/src/server/server'

export interface Overhead {
  readonly engineTokensPerSecond: number
  readonly serverTokensPerSecond: number
  /** Share of the engine's throughput that the server costs, the median of the rounds. */
  readonly share: number
}

/** Reads `streams` answers at once on a thread of its own, and posts the milliseconds from first byte to last. */
const client = `
const { parentPort, workerData } = require('node:worker_threads')
const one = async (i) => {
  const body = JSON.stringify({ prompt: [5 + i, 9, 33], max_tokens: workerData.tokens, stream: true, temperature: 0, ignore_eos: true })
  const response = await fetch(workerData.url + '/v1/completions', { method: 'POST', body })
  let bytes = 0
  for await (const piece of response.body) bytes += piece.length
  return bytes
}
const start = performance.now()
Promise.all(Array.from({ length: workerData.streams }, (_, i) => one(i))).then(() => parentPort.postMessage(performance.now() - start))
`

/** The engine's decode throughput alone and behind the server, in turns on one model. */
export async function measureOverhead(
  model: StepModel,
  streams: number,
  tokens: number,
  rounds: number,
): Promise<Overhead> {
  const engine = new LlmEngine(model, { prefixCache: false })
  const server = await startServer({
    engine,
    tokenizer: await loadTokenizer(modelDirectory),
    chat: await ChatTemplate.load(modelDirectory),
    model: {
      id: 'm',
      created: 1,
      backend: '',
      maxPositions: model.config.maxPositions,
      latentBytesPerToken: 1,
      mhaBytesPerToken: 1,
    },
    port: 0,
  })
  const alone = async () => {
    const started = performance.now()
    const one = async (i: number) => {
      for await (const _ of engine.submit({ prompt: [5 + i, 9, 33], maxTokens: tokens, ignoreEos: true }));
    }
    await Promise.all(Array.from({ length: streams }, (_, i) => one(i)))
    return performance.now() - started
  }
  const served = () =>
    new Promise<number>((resolve, reject) => {
      const worker = new Worker(client, { eval: true, workerData: { url: server.url, streams, tokens } })
      worker.once('message', resolve)
      worker.once('error', reject)
    })
  await alone()
  await served()
  const pairs: [number, number][] = []
  for (let round = 0; round < rounds; round++) pairs.push([await alone(), await served()])
  await server.close(0)
  const median = (values: number[]) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)]!
  const rate = (milliseconds: number) => (streams * tokens * 1000) / milliseconds
  return {
    engineTokensPerSecond: rate(median(pairs.map(([a]) => a))),
    serverTokensPerSecond: rate(median(pairs.map(([, b]) => b))),
    share: median(pairs.map(([a, b]) => 1 - a / b)),
  }
}
