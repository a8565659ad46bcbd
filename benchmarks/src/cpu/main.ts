/** The fast CPU backend against the reference on tiny-mla, and its attention kernel against its own ceilings. */
import { writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { fileURLToPath } from 'node:url'
import { createCpuBackend, ReferenceBackend } from '@flashmla/cpu'
import { machine } from '../kv-cache-result'
import { formats, measureAttention, measureCeilings } from './attention'
import { measureModel } from './model'

const threads = availableParallelism()
const fast = await createCpuBackend({ threads })
const bf16 = await createCpuBackend({ threads, weights: 'bf16' })
const f32 = await createCpuBackend({ threads, weights: 'f32' })
const reference = new ReferenceBackend()
const lines: string[] = []
const say = (line: string) => {
  lines.push(line)
  process.stdout.write(`${line}\n`)
}
const date = new Date().toISOString().slice(0, 10)
say(`# The CPU backends, ${date}`)
say('')
say(`${machine()}; ${fast.name}. Best of several runs. Command: \`pnpm --filter @flashmla/benchmarks bench:cpu\`.`)
say('')
say('## tiny-mla, tokens a second')
say('')
say('A prompt of 128 tokens a sequence, then 32 decode steps.')
say('')
say('| batch | weights | prefill | decode | prefill / reference | decode / reference |')
say('| --- | --- | --- | --- | --- | --- |')
const models = []
for (const batch of [1, 4, 16]) {
  const base = await measureModel(reference, batch, { promptTokens: 128, steps: 8, runs: 1 })
  say(`| ${batch} | reference (f32) | ${base.prefill.toFixed(0)} | ${base.decode.toFixed(0)} | | |`)
  models.push(base)
  for (const [name, backend] of [
    ['f32', f32],
    ['bf16', bf16],
  ] as const) {
    const speed = await measureModel(backend, batch, { promptTokens: 128, steps: 32, runs: 5 })
    models.push({ ...speed, weights: name })
    say(
      `| ${batch} | ${name} | ${speed.prefill.toFixed(0)} | ${speed.decode.toFixed(0)} | ${(speed.prefill / base.prefill).toFixed(1)} | ${(speed.decode / base.decode).toFixed(1)} |`,
    )
  }
}
const ceilings = await measureCeilings(fast, 20)
say('')
say('## Absorbed decode attention, d_qk 576, d_v 512')
say('')
say(
  `Ceilings of the same run: ${ceilings.gflops.toFixed(1)} GFLOP/s (float32 matrix product 128 × 1024 × 1024), ${ceilings.gbytes.toFixed(1)} GB/s (matrix-vector product over 256 MiB).`,
)
say('')
say('| cache | heads | batch | length | ms | GFLOP/s | GB/s | share of the nearer ceiling |')
say('| --- | --- | --- | --- | --- | --- | --- | --- |')
const attention = []
for (const format of formats) {
  for (const heads of [16, 128]) {
    for (const [batch, length] of [
      [1, 1024],
      [1, 8192],
      [1, 65536],
      [8, 1024],
      [8, 8192],
      [8, 65536],
    ] as const) {
      if (batch * length * format.bytesPerToken > 2 ** 30) continue
      const speed = await measureAttention(fast, format, heads, batch, length, batch * length > 100_000 ? 3 : 8)
      const share = Math.max(speed.gflops / ceilings.gflops, speed.gbytes / ceilings.gbytes)
      attention.push({ ...speed, share })
      say(
        `| ${speed.format} | ${heads} | ${batch} | ${length} | ${speed.milliseconds.toFixed(2)} | ${speed.gflops.toFixed(1)} | ${speed.gbytes.toFixed(1)} | ${(share * 100).toFixed(0)} % |`,
      )
    }
  }
}
const result = fileURLToPath(new URL(`../../results/${date}-cpu`, import.meta.url))
writeFileSync(`${result}.md`, `${lines.join('\n')}\n`)
writeFileSync(
  `${result}.json`,
  `${JSON.stringify({ date, machine: machine(), threads, models, ceilings, attention }, null, 2)}\n`,
)
for (const backend of [fast, bf16, f32]) await backend[Symbol.asyncDispose]()
