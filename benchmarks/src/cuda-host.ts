// What a step of tiny-mla costs the host: the CUDA backend over a driver whose kernels do nothing (kernels/test/driver.cpp). Linux and GCC.
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { createCudaBackend } from '@flashmla/cuda'
import { Model } from '@flashmla/engine'
import { modelDirectory } from '@flashmla/tiny-mla'

const ROUNDS = 60
const STEPS = 100

/** µs of a decode step behind a prompt of 128 tokens: the least and the median of the rounds. */
async function timeSteps(attention: 'exact' | 'fast', graphs: boolean, batch: number): Promise<string> {
  const backend = await createCudaBackend({ attention, graphs })
  const model = await Model.load(modelDirectory, {
    backend,
    numBlocks: 256,
    cacheFormat: attention === 'fast' ? 'bf16' : 'f32',
  })
  const prompt = Array.from({ length: 128 }, (_, i) => i + 2)
  const times: number[] = []
  for (let round = 0; round < ROUNDS; round++) {
    const sequences = Array.from({ length: batch }, () => model.sequence())
    for (const sequence of sequences) await model.step([{ sequence, tokens: prompt, logits: 'last' }])
    const start = performance.now()
    for (let i = 0; i < STEPS; i++)
      await model.step(sequences.map((sequence) => ({ sequence, tokens: [2 + i], logits: 'last' })))
    times.push(((performance.now() - start) * 1e3) / STEPS)
    for (const sequence of sequences) sequence.free()
  }
  model.dispose()
  backend.dispose()
  times.sort((a, b) => a - b)
  return `${times[0]!.toFixed(0)} ${times[ROUNDS / 2]!.toFixed(0)}`
}

if (process.env.FLASHMLA_IDLE_DRIVER) {
  console.log('attention, graphs, batch: least and median µs of a step')
  for (const attention of ['exact', 'fast'] as const) {
    for (const graphs of [true, false]) {
      for (const batch of [1, 16]) console.log(attention, graphs, batch, await timeSteps(attention, graphs, batch))
    }
  }
} else {
  // The loader reads where it looks for libraries when a process starts.
  const folder = mkdtempSync(join(tmpdir(), 'flashmla-idle-'))
  const sources = fileURLToPath(new URL('../../kernels/test', import.meta.url))
  const options = ['-std=c++17', '-O2', '-shared', '-fPIC', '-fno-extern-tls-init', '-DFLASHMLA_IDLE', '-I', sources]
  try {
    execFileSync('c++', [...options, '-o', join(folder, 'libcuda.so.1'), join(sources, 'driver.cpp')])
    const env = { ...process.env, LD_LIBRARY_PATH: folder, FLASHMLA_IDLE_DRIVER: '1' }
    const child = [...process.execArgv, fileURLToPath(import.meta.url)]
    process.exitCode = spawnSync(process.execPath, child, { stdio: 'inherit', env }).status ?? 1
  } finally {
    rmSync(folder, { recursive: true })
  }
}
