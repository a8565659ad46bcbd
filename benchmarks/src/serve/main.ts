import { mkdirSync, writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { fileURLToPath } from 'node:url'
import { ReferenceBackend } from '@flashmla/cpu'
import { type EngineOptions, LlmEngine, Model, type StepModel } from '@flashmla/engine'
import { modelDirectory } from '@flashmla/tiny-mla'
import type { LoadResult } from './load'
import { runLoad } from './load'
import type { Overhead } from './overhead'
import { measureOverhead } from './overhead'
import { lineChart } from './plot'
import { SimulatedModel } from './simulated-model'
import { planWorkload } from './workload'

const date = new Date().toISOString().slice(0, 10)
const folder = fileURLToPath(new URL('../../results/', import.meta.url))
const quick = process.argv.includes('--quick')
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
  const single = await load(setup, 1e6, { maxBatchSize: 1 }, 0, Math.ceil(burst / 6))
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

function report(
  results: readonly Awaited<ReturnType<typeof measure>>[],
  overhead: Record<'simulated' | 'tiny', Overhead>,
): string {
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

16 streamed answers over HTTP against the same 16 in the engine, in turns on one model; the share is the median of the rounds, and the
client runs on a thread of the same machine.

| model | engine alone, tokens/s | behind the server | cost |
|---|---|---|---|
${(['simulated', 'tiny'] as const)
  .map((name) => {
    const { engineTokensPerSecond, serverTokensPerSecond, share } = overhead[name]
    return `| ${name === 'tiny' ? 'tiny-mla, reference backend' : 'simulated accelerator'} | ${number(engineTokensPerSecond, 1)} | ${number(serverTokensPerSecond, 1)} | ${number(100 * share, 1)} % |`
  })
  .join('\n')}
`
}

async function main(): Promise<void> {
  const backend = new ReferenceBackend()
  const tiny = await Model.load(modelDirectory, {
    backend,
    pageSize: 16,
    numBlocks: 512,
    maxBatchSize: 32,
    maxBatchTokens: 256,
  })
  const setups: Setup[] = [
    {
      name: 'Simulated accelerator: a step takes 8 ms and 0.02 ms a token, batch up to 64, 4096 pages of 16',
      model: () => new SimulatedModel(64, 8, 0.02, 4096),
      scale: 0.5,
      systemPrompt: 512,
      window: quick ? 2 : 8,
      burst: 192,
      loads: [0.2, 0.4, 0.6, 0.8, 1, 1.25, 1.6, 2],
    },
    {
      name: 'tiny-mla on the reference backend, lengths × 1/16',
      model: () => tiny,
      scale: 1 / 16,
      systemPrompt: 64,
      window: quick ? 4 : 8,
      burst: 24,
      loads: [0.4, 0.8, 1.2],
    },
  ]
  const results = []
  for (const setup of setups) {
    process.stderr.write(`${setup.name} …\n`)
    results.push(await measure(setup))
  }
  const overhead = {
    simulated: await measureOverhead(new SimulatedModel(64, 8, 0.02, 4096), 16, 200, quick ? 2 : 7),
    tiny: await measureOverhead(tiny, 16, quick ? 6 : 12, quick ? 2 : 5),
  }
  mkdirSync(folder, { recursive: true })
  const { sweep } = results[0]!
  const curve = (pick: (r: LoadResult) => number) => sweep.map((r) => [r.offered, pick(r)] as const)
  const colors = ['#2b8ae0', '#d9822b', '#c2417a']
  const spread = (pick: (r: LoadResult) => LoadResult['firstToken']) =>
    (['p50', 'p95', 'p99'] as const).map((p, i) => ({ name: p, color: colors[i]!, points: curve((r) => pick(r)[p]) }))
  const charts = {
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
  for (const [name, svg] of Object.entries(charts)) writeFileSync(`${folder}${date}-serve-${name}.svg`, svg)
  const plots = Object.keys(charts).map((name) => `![${name}](${date}-serve-${name}.svg)`)
  writeFileSync(
    `${folder}${date}-serve.md`,
    `${report(results, overhead)}\n## Plots of the simulated accelerator\n\n${plots.join('\n')}\n`,
  )
  writeFileSync(
    `${folder}${date}-serve.json`,
    `${JSON.stringify({ date, node: process.versions.node, results, overhead }, undefined, 2)}\n`,
  )
  process.stdout.write(report(results, overhead))
}

await main()
