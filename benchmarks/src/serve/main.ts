import { fork } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { availableParallelism, cpus } from 'node:os'
import { fileURLToPath } from 'node:url'
import { type EngineOptions, LlmEngine, type StepModel } from '@flashmla/engine'
import type { Cost, CostRequest } from './cost'
import type { LoadResult } from './load'
import { runLoad } from './load'
import { lineChart } from './plot'
import { SimulatedModel } from './simulated-model'
import { tinyModel } from './tiny-model'
import { planWorkload } from './workload'

const date = new Date().toISOString().slice(0, 10)
const folder = fileURLToPath(new URL('../../results/', import.meta.url))
const quick = process.argv.includes('--quick')
/** Measures the server's cost alone and takes the rest from today's result; without one it is only printed. */
const costOnly = process.argv.includes('--cost')
const seed = 1

interface Setup {
  readonly name: string
  readonly model: () => StepModel
  readonly scale: number
  readonly systemPrompt: number
  /** Seconds that arrivals go on for at each load. */
  readonly window: number
  /** Requests of a burst. */
  readonly burst: number
  /** Offered loads, as parts of what the burst was answered at. */
  readonly loads: readonly number[]
}

async function load(
  setup: Setup,
  rate: number,
  options: EngineOptions,
  systemPrompt = 0,
  requests?: number,
): Promise<LoadResult> {
  const model = setup.model()
  const engine = new LlmEngine(model, { maxQueued: 1000, ...options })
  const plan = planWorkload({
    requests: requests ?? Math.max(8, Math.round(rate * setup.window)),
    rate,
    seed,
    vocabSize: model.config.vocabSize,
    scale: setup.scale,
    systemPrompt,
  })
  const result = await runLoad(engine, plan, rate)
  await engine.dispose()
  return result
}

/** Saturation by a burst; then load from light to 1.5 times that; one at a time; the shared system prompt. */
async function measure(setup: Setup) {
  const burst = quick ? 24 : setup.burst
  const saturated = await load(setup, 1e6, {}, 0, burst)
  const single = await load(setup, 1e6, { maxBatchSize: 1 }, 0, Math.ceil(burst / 10))
  const sweep: LoadResult[] = []
  for (const part of quick ? [0.3, 0.9, 1.5] : setup.loads)
    sweep.push(await load(setup, part * saturated.requestsPerSecond, {}))
  const shared = {
    on: await load(setup, 1e6, {}, setup.systemPrompt, burst),
    off: await load(setup, 1e6, { prefixCache: false }, setup.systemPrompt, burst),
  }
  return { setup: setup.name, saturated, single, sweep, shared }
}

const number = (value: number, digits = 0) => value.toFixed(digits)
const row = (name: string, r: LoadResult) =>
  `| ${name} | ${number(r.requestsPerSecond, 2)} | ${number(r.tokensPerSecond)} | ${[r.firstToken, r.interToken].map((p) => `${number(p.p50)} / ${number(p.p95)} / ${number(p.p99)}`).join(' | ')} | ${r.preemptions} | ${number(100 * r.hitRate)} % | ${r.refused} |`

function report(results: readonly Load[], overhead: readonly Cost[]): string {
  const head =
    '| load, requests/s | answered/s | tokens/s | first token p50/p95/p99, ms | between tokens p50/p95/p99, ms | preemptions | prefix hits | refused |\n|---|---|---|---|---|---|---|---|'
  const sections = results.map(
    ({ setup, saturated, single, sweep, shared }) => `## ${setup}

${head}
${sweep.map((r) => row(number(r.offered, 2), r)).join('\n')}
${row('all at once', saturated)}
${row('all at once, one sequence a step', single)}
${row('shared system prompt, prefix cache on', shared.on)}
${row('shared system prompt, prefix cache off', shared.off)}

- Continuous batching against one at a time: **${number(saturated.tokensPerSecond / single.tokensPerSecond, 1)}×** the tokens a second.
- Prefix cache on a shared system prompt: **${number(shared.on.tokensPerSecond / shared.off.tokensPerSecond, 2)}×** the tokens a second, median first token ${number(shared.off.firstToken.p50)} → ${number(shared.on.firstToken.p50)} ms.
`,
  )
  return `# Serving under load, ${date}

${cpus()[0]?.model ?? 'unknown processor'}, ${cpus().length} cores, Node ${process.versions.node}; the machine was shared while this ran. Open-loop Poisson arrivals,
ShareGPT-like lengths (see benchmarks/src/serve/workload.ts). \`pnpm --filter @flashmla/benchmarks bench:serve\` runs it again.

${sections.join('\n')}
## The server's own cost

Decode of 16 streams: over HTTP as server-sent events, against the same 16 in the engine, in turns on one model; both are timed in the
engine, between the first and the last step that decodes all 16. The client is a process of its own that reads only when the round is over:
over a network its processor time is another machine's. That time is the last column. The server writes the tokens of short steps together
(docs/decisions/0703); beside it, the same with \`--flush-interval 0\`. Each row is a process of its own. Medians of the rounds; throughput
cost is the median of each round's ratio. \`bench:serve --cost\` measures this table alone.

| model | engine alone, tokens/s | behind the server | throughput cost | processor time a token, alone → behind | added | client's, a token |
|---|---|---|---|---|---|---|
${overhead
  .map(
    ({ model, engine, server, share, cpuShare, clientCpuPerToken }) =>
      `| ${model} | ${number(engine.tokensPerSecond)} | ${number(server.tokensPerSecond)} | **${number(100 * share, 1)} %** | ${number(engine.cpuPerToken)} → ${number(server.cpuPerToken)} µs | ${number(100 * cpuShare, 1)} % | ${number(clientCpuPerToken)} µs |`,
  )
  .join('\n')}
`
}

function charts(sweep: readonly LoadResult[]): Record<'throughput' | 'first-token' | 'inter-token', string> {
  const curve = (pick: (r: LoadResult) => number) => sweep.map((r) => [r.offered, pick(r)] as const)
  const colors = ['#2b8ae0', '#d9822b', '#c2417a']
  const spread = (pick: (r: LoadResult) => LoadResult['firstToken']) =>
    (['p50', 'p95', 'p99'] as const).map((p, i) => ({ name: p, color: colors[i]!, points: curve((r) => pick(r)[p]) }))
  return {
    throughput: lineChart({
      title: 'Throughput against offered load',
      x: 'offered requests a second',
      y: 'tokens a second',
      series: [{ name: 'answer tokens', color: colors[0]!, points: curve((r) => r.tokensPerSecond) }],
    }),
    'first-token': lineChart({
      title: 'Time to first token',
      x: 'offered requests a second',
      y: 'ms',
      log: true,
      series: spread((r) => r.firstToken),
    }),
    'inter-token': lineChart({
      title: 'Time between tokens',
      x: 'offered requests a second',
      y: 'ms',
      series: spread((r) => r.interToken),
    }),
  }
}

type Load = Awaited<ReturnType<typeof measure>>

async function measureLoads(cores: number): Promise<Load[]> {
  const whole = await tinyModel(cores)
  const setups: Setup[] = [
    {
      name: 'Simulated accelerator: a step takes 8 ms and 0.02 ms a token, batch up to 64, 4096 pages of 16',
      model: () => new SimulatedModel(64, 8, 0.02, 4096),
      scale: 0.5,
      systemPrompt: 512,
      window: quick ? 2 : 6,
      burst: 96,
      loads: [0.3, 0.6, 1, 1.5, 2],
    },
    {
      name: `${whole.name}, lengths × 1/4`,
      model: () => whole.model,
      scale: 1 / 4,
      systemPrompt: 128,
      window: quick ? 3 : 6,
      burst: 48,
      loads: [0.25, 0.5, 0.75, 1, 1.25, 1.5],
    },
  ]
  const results = []
  for (const setup of setups) {
    process.stderr.write(`${setup.name} …\n`)
    results.push(await measure(setup))
  }
  whole.model.dispose()
  whole.backend.dispose()
  return results
}

/** With the server's own pace of writing, and with a write after every step; each in a process of its own, as a server is. */
async function measureCosts(cores: number): Promise<Cost[]> {
  const costs: Cost[] = []
  for (const threads of [...new Set([Math.max(1, cores - 1), cores]), 0])
    for (const flushMs of [undefined, 0]) {
      const child = fork(fileURLToPath(new URL('./cost.ts', import.meta.url)))
      const request: CostRequest = { threads, flushMs, tokens: quick ? 40 : 160, rounds: quick ? 3 : 9 }
      child.send(request)
      const broken = once(child, 'exit').then(([code]) => {
        throw new Error(`A measurement ended with ${code}.`)
      })
      const [cost] = (await Promise.race([once(child, 'message'), broken])) as [Cost]
      broken.catch(() => {})
      child.disconnect()
      costs.push(cost)
      process.stderr.write(`server's cost, ${cost.model}: ${number(100 * cost.share, 1)} %\n`)
    }
  return costs
}

async function main(): Promise<void> {
  const cores = availableParallelism()
  const json = `${folder}${date}-serve.json`
  const measured = existsSync(json)
  const kept = (): Load[] => (measured ? JSON.parse(readFileSync(json, 'utf8')).results : [])
  const results = costOnly ? kept() : await measureLoads(cores)
  const overhead = await measureCosts(cores)
  if (costOnly && !measured) {
    process.stdout.write(report(results, overhead))
    return
  }
  mkdirSync(folder, { recursive: true })
  const plots = results.map((result, i) => {
    const prefix = `${date}-serve-${['simulated', 'tiny-mla'][i]!}`
    for (const [name, svg] of Object.entries(charts(result.sweep))) writeFileSync(`${folder}${prefix}-${name}.svg`, svg)
    const images = ['throughput', 'first-token', 'inter-token'].map((name) => `![${name}](${prefix}-${name}.svg)`)
    return `## Plots: ${result.setup}\n\n${images.join('\n')}\n`
  })
  writeFileSync(`${folder}${date}-serve.md`, `${report(results, overhead)}\n${plots.join('\n')}`)
  writeFileSync(json, `${JSON.stringify({ date, node: process.versions.node, results, overhead }, undefined, 2)}\n`)
  process.stdout.write(report(results, overhead))
}

await main()
