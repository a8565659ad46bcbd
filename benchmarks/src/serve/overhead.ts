import { fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { ChatTemplate, LlmEngine, loadTokenizer, type StepModel } from '@flashmla/engine'
import { modelDirectory } from '@flashmla/tiny-mla'
import { startServer } from '../../../apps/demo/src/server/server'
import type { Round, RoundResult } from './stream-client'

/** Decode throughput and processor time of one way of running the same requests, medians of the rounds. */
export interface Side {
  readonly tokensPerSecond: number
  /** Processor time of the serving process a token, all its threads, in microseconds. */
  readonly cpuPerToken: number
}

export interface Overhead {
  readonly engine: Side
  readonly server: Side
  /** Share of the engine's throughput that the server costs, the median of the rounds. */
  readonly share: number
  /** Processor time that the server adds to the engine's, as a share of the engine's. */
  readonly cpuShare: number
  /** Processor time of the client a token, in microseconds: not the server's, but of the same machine. */
  readonly clientCpuPerToken: number
}

/**
 * The engine's decode throughput alone and behind the server, in turns on one model. The client is a process of its own
 * that reads nothing meanwhile, and parses nothing after.
 */
export async function measureOverhead(
  model: StepModel,
  streams: number,
  tokens: number,
  rounds: number,
  limits: NonNullable<Parameters<typeof startServer>[0]['limits']> = {},
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
    limits,
  })
  const client = fork(fileURLToPath(new URL('./stream-client.ts', import.meta.url)))
  const broken = once(client, 'exit').then(([code]) => {
    if (code !== 0) throw new Error(`The client ended with ${code}.`)
  })
  broken.catch(() => {})
  const port = Number(new URL(server.url).port)
  let aloneMs = 0
  const alone = async () => {
    const one = (i: number) =>
      new Promise<void>((resolve, reject) =>
        engine.start(
          { prompt: [5 + i, 9, 33], maxTokens: tokens, ignoreEos: true },
          { event() {}, end: (error) => (error ? reject(error) : resolve()) },
        ),
      )
    const started = performance.now()
    await Promise.all(Array.from({ length: streams }, (_, i) => one(i)))
    aloneMs = performance.now() - started
    return 0
  }
  /** The client's processor time, in microseconds. */
  const served = async () => {
    client.send({ port, streams, tokens, quietMs: 1.3 * aloneMs } satisfies Round)
    const [{ cpuMilliseconds }] = (await Promise.race([once(client, 'message'), broken])) as [RoundResult]
    return cpuMilliseconds * 1000
  }
  /** Between the first and the last step that decodes all the streams; both sides are timed alike, in the engine. */
  const timed = async (run: () => Promise<number>) => {
    const marks: { at: number; cpu: NodeJS.CpuUsage; generated: number }[] = []
    let generated = 0
    const off = engine.onStep((report) => {
      if (report.sequences < streams || report.prefill > 0) return
      generated += report.generated
      const mark = { at: performance.now(), cpu: process.cpuUsage(), generated }
      if (marks.length < 2) marks.push(mark)
      else marks[1] = mark
    })
    const clientCpu = await run()
    off()
    const [first, last] = marks as [(typeof marks)[0], (typeof marks)[0]]
    const made = last.generated - first.generated
    return {
      microseconds: ((last.at - first.at) * 1000) / made,
      cpu: (last.cpu.user + last.cpu.system - first.cpu.user - first.cpu.system) / made,
      clientCpu: clientCpu / (streams * tokens),
    }
  }
  // The first runs compile; the client's first also starts it.
  await alone()
  await served()
  await served()
  const pairs = []
  for (let r = 0; r < rounds; r++) {
    // Which goes first alternates, so that a drift of the machine's speed favours neither.
    if (r % 2) {
      const b = await timed(served)
      pairs.push({ a: await timed(alone), b })
    } else {
      const a = await timed(alone)
      pairs.push({ a, b: await timed(served) })
    }
  }
  client.disconnect()
  await server.close(0)
  const median = (values: number[]) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)]!
  const side = (runs: { microseconds: number; cpu: number }[]): Side => ({
    tokensPerSecond: 1e6 / median(runs.map((run) => run.microseconds)),
    cpuPerToken: median(runs.map((run) => run.cpu)),
  })
  return {
    engine: side(pairs.map(({ a }) => a)),
    server: side(pairs.map(({ b }) => b)),
    share: median(pairs.map(({ a, b }) => 1 - a.microseconds / b.microseconds)),
    cpuShare: median(pairs.map(({ a, b }) => b.cpu / a.cpu - 1)),
    clientCpuPerToken: median(pairs.map(({ b }) => b.clientCpu)),
  }
}
