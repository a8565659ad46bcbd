/** The CPU backends: tiny-mla beside llama.cpp, attention against the machine's ceilings, and cost against size. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { createCpuBackend, ReferenceBackend } from '@flashmla/cpu'
import { modelDirectory } from '@flashmla/tiny-mla'
import { machine } from '../kv-cache-result'
import { formats, measureAttention } from './attention'
import { measureCeilings } from './ceiling/measure'
import type { Contender } from './contender'
import { llamaContender, openLlama } from './contender-llama'
import { modelContender } from './contender-model'
import { convertToGguf } from './gguf/convert'
import { isLinear, measureGrowth, tolerance } from './linearity'
import type { Speed } from './speed'
import { compareSpeed, promptTokens, stepCost } from './speed'

const threads = availableParallelism()
const lines: string[] = []
const say = (...text: string[]) => {
  lines.push(...text)
  process.stdout.write(`${text.join('\n')}\n`)
}
const date = new Date().toISOString().slice(0, 10)
const work = mkdtempSync(join(tmpdir(), 'flashmla-bench-'))
const reference = modelContender('reference', new ReferenceBackend())
const backends = {
  f32: await createCpuBackend({ threads, weights: 'f32' }),
  bf16: await createCpuBackend({ threads, weights: 'bf16' }),
}
const peer = await openLlama()
say(`# The CPU backends, ${date}`, '')
say(
  `${machine()}; ${threads} threads for every contender; ours is ${backends.f32.name.replace(', f32 weights', '')}. Command: \`pnpm --filter @flashmla/benchmarks bench:cpu\`.`,
  '',
)

// Largest difference of a logit, of values up to about 15: float32 products agree to rounding; llama.cpp rounds
// activations to bf16 before a bf16 product, and flash attention takes half-precision queries and values.
const allowed = { f32: 0.02, bf16: 0.1 } as const
const probe = Array.from({ length: promptTokens }, (_, i) => (i * 977) % 4096)
const models = []
const logitChecks: { contender: string; largestDifference: number }[] = []
const peerSettings = [
  { flashAttention: false, cache: 'f32' },
  { flashAttention: false, cache: 'f16' },
  { flashAttention: true, cache: 'f16' },
] as const
for (const weights of ['f32', 'bf16'] as const) {
  const ours = (['f32', 'bf16'] as const).map((cache) =>
    modelContender(`ours, ${cache} cache`, backends[weights], cache),
  )
  const expected = await ours[0]!.logits(probe)
  const llama: Contender[] = []
  if (!('missing' in peer)) {
    const gguf = join(work, `${weights}.gguf`)
    await convertToGguf(modelDirectory, gguf, weights)
    for (const settings of peerSettings) {
      const name = `llama.cpp, ${settings.cache} cache${settings.flashAttention ? ', flash attention' : ''}`
      const contender = await llamaContender(peer.bindings, name, { gguf, threads, ...settings })
      const logits = await contender.logits(probe)
      const largestDifference = logits.reduce((most, x, i) => Math.max(most, Math.abs(x - expected[i]!)), 0)
      if (logits.length !== expected.length || !(largestDifference <= allowed[weights]))
        throw new Error(`${name}: logits differ by ${largestDifference}, ${allowed[weights]} is allowed.`)
      logitChecks.push({ contender: `${name}, ${weights} weights`, largestDifference })
      llama.push(contender)
    }
  }
  for (const batch of [1, 4, 16]) {
    const runs = { runs: 7, steps: 32 }
    const speeds = await compareSpeed(
      [
        ...ours.map((contender) => ({ contender, weights, runs })),
        ...llama.map((contender) => ({ contender, weights, runs })),
        ...(weights === 'f32' ? [{ contender: reference, weights, runs: { runs: 1, steps: 8 } }] : []),
      ],
      batch,
    )
    models.push(...speeds)
  }
  for (const contender of llama) await contender.dispose()
}
say('## tiny-mla, tokens a second', '')
say(
  `A prompt of ${promptTokens} tokens a sequence (passes of up to 512 tokens), then 32 decode steps; best of 7 turns, contenders`,
)
say(
  'taking turns. The fast backend reads its logits back to JavaScript; llama.cpp keeps them, and is driven by its batched',
)
say(
  'decode directly. Of its settings (float32 or half cache, flash attention or not) and of ours (float32 or bf16 cache) the',
)
say('faster counts, for each column.', '')
if ('missing' in peer) say(peer.missing, '')
else {
  say(
    `Peer: ${peer.version}. Last logits of the prompt against ours before timing (largest difference, of values up to 15):`,
  )
  for (const { contender, largestDifference } of logitChecks) say(`- ${contender}: ${largestDifference.toPrecision(2)}`)
  say('')
}
const ratios = []
say(
  '| batch | weights | | prefill | decode | prefill / llama.cpp | decode / llama.cpp | prefill / reference | decode / reference |',
)
say('| --- | --- | --- | --- | --- | --- | --- | --- | --- |')
for (const batch of [1, 4, 16]) {
  const base = models.find((m) => m.batch === batch && m.contender === 'reference')!
  say(`| ${batch} | f32 | reference | ${base.prefill.toFixed(0)} | ${base.decode.toFixed(0)} | | | | |`)
  for (const weights of ['f32', 'bf16'] as const) {
    const of = models.filter((m) => m.batch === batch && m.weights === weights)
    const ours = of.filter((m) => m.contender.startsWith('ours'))
    const peers = of.filter((m) => m.contender.startsWith('llama.cpp'))
    for (const { contender, prefill, decode } of [...peers, ...ours])
      say(`| ${batch} | ${weights} | ${contender} | ${prefill.toFixed(0)} | ${decode.toFixed(0)} | | | | |`)
    const best = (speeds: readonly Speed[], what: 'prefill' | 'decode') => Math.max(...speeds.map((m) => m[what]))
    const ratio = {
      batch,
      weights,
      prefill: best(ours, 'prefill') / best(peers, 'prefill'),
      decode: best(ours, 'decode') / best(peers, 'decode'),
      prefillReference: best(ours, 'prefill') / base.prefill,
      decodeReference: best(ours, 'decode') / base.decode,
    }
    ratios.push(ratio)
    const shown = (x: number) => (peers.length > 0 ? `**${x.toFixed(2)}**` : '')
    say(
      `| ${batch} | ${weights} | ours ÷ the others | | | ${shown(ratio.prefill)} | ${shown(ratio.decode)} | ${ratio.prefillReference.toFixed(1)} | ${ratio.decodeReference.toFixed(1)} |`,
    )
  }
}

const ceilings = await measureCeilings(threads, 5)
say('', '## Absorbed decode attention, d_qk 576, d_v 512', '')
say(
  `Ceilings of the same run, ${threads} threads: ${ceilings.gflops.toFixed(1)} GFLOP/s (a bare loop of multiply-adds in WebAssembly, fused where the runtime can),`,
)
say(`${ceilings.gbytes.toFixed(1)} GB/s (a streaming read of 256 MiB a thread).`, '')
say('| cache | heads | batch | length | ms | GFLOP/s | GB/s | share of the binding ceiling |')
say('| --- | --- | --- | --- | --- | --- | --- | --- |')
const attention = []
// The kernels' optimized code is ready after some runs.
for (const format of formats) await measureAttention(backends.bf16, format, 16, 1, 8192, 20)
for (const format of formats) {
  for (const heads of [16, 128]) {
    for (const batch of [1, 8]) {
      for (const length of [1024, 8192, 65536]) {
        const runs = batch * length * heads > 8_000_000 ? 3 : 8
        const speed = await measureAttention(backends.bf16, format, heads, batch, length, runs)
        const share = Math.max(speed.gflops / ceilings.gflops, speed.gbytes / ceilings.gbytes)
        attention.push({ ...speed, share })
        say(
          `| ${speed.format} | ${heads} | ${batch} | ${length} | ${speed.milliseconds.toFixed(2)} | ${speed.gflops.toFixed(1)} | ${speed.gbytes.toFixed(1)} | ${(share * 100).toFixed(0)} % |`,
        )
      }
    }
  }
}

say('', '## Cost against size', '')
say(`Milliseconds as a size doubles; a step from one size to the next may cost at most 2 × ${tolerance}.`, '')
const kernel = async (batch: number, length: number) =>
  (await measureAttention(backends.bf16, formats[0]!, 16, batch, length, 8)).milliseconds
const ours = modelContender('ours', backends.bf16)
const growth = [
  await measureGrowth('attention, 16 heads, batch 1, by length', [1024, 2048, 4096, 8192, 16384, 32768], (n) =>
    kernel(1, n),
  ),
  await measureGrowth('attention, 16 heads, length 4096, by batch', [1, 2, 4, 8, 16], (b) => kernel(b, 4096)),
  await measureGrowth('decode step of tiny-mla, batch 1, by context', [60, 120, 240, 480, 960], (n) =>
    stepCost(ours, 1, n, 40),
  ),
  await measureGrowth('decode step of tiny-mla, context 256, by batch', [1, 2, 4, 8, 16, 32], (b) =>
    stepCost(ours, b, 256, 30),
  ),
]
say('| | sizes | ms | most for a doubling | |', '| --- | --- | --- | --- | --- |')
for (const item of growth)
  say(
    `| ${item.what} | ${item.sizes.join(', ')} | ${item.milliseconds.map((ms) => ms.toFixed(2)).join(', ')} | × ${item.worst.toFixed(2)} | ${isLinear(item) ? 'linear within the tolerance' : '**faster than linear**'} |`,
  )

const result = fileURLToPath(new URL(`../../results/${date}-cpu`, import.meta.url))
writeFileSync(`${result}.md`, `${lines.join('\n')}\n`)
const data = { date, machine: machine(), threads, peer, logitChecks, models, ratios, ceilings, attention, growth }
writeFileSync(
  `${result}.json`,
  `${JSON.stringify(data, (key, value) => (key === 'bindings' ? undefined : value), 2)}\n`,
)
for (const backend of Object.values(backends)) await backend[Symbol.asyncDispose]()
rmSync(work, { recursive: true })
process.exit(growth.every(isLinear) ? 0 : 1)
