import { availableParallelism, cpus, freemem, totalmem } from 'node:os'
import { parseArgs } from 'node:util'
import { type Probe, probe } from '@flashmla/cuda'
import { checkBackends } from '../backends'
import { bold, bytes, printJson } from '../terminal'
import type { Command } from './command'

const help = `flashmla doctor [options]   what this machine can run, and why not

  --json    the same as one JSON object
`

async function run(args: readonly string[]): Promise<void> {
  const { values } = parseArgs({ args: [...args], options: { json: { type: 'boolean', default: false } } })
  const machine = {
    node: process.version,
    platform: `${process.platform}-${process.arch}`,
    cpu: cpus()[0]?.model ?? 'unknown',
    threads: availableParallelism(),
    memoryBytes: totalmem(),
    freeMemoryBytes: freemem(),
  }
  const cuda = await probe()
  const backends = await checkBackends(cuda)
  if (values.json) {
    printJson({ machine, backends, cuda })
    return
  }
  process.stdout.write(
    `Node ${machine.node} on ${machine.platform}, ${machine.cpu}, ${machine.threads} threads, ` +
      `${bytes(machine.freeMemoryBytes)} of ${bytes(machine.memoryBytes)} free\n\n`,
  )
  for (const { id, usable, chosen, detail } of backends) {
    process.stdout.write(
      `${usable ? '✓' : '✗'} ${bold(id.padEnd(10))} ${detail.replaceAll('\n', `\n${' '.repeat(13)}`)}${chosen ? ' ← auto' : ''}\n`,
    )
  }
  process.stdout.write(`\nNVIDIA GPUs (@flashmla/cuda)\n${gpuLines(cuda).join('\n')}\n`)
}

/** Driver, and what each device runs and why. */
function gpuLines(cuda: Probe): string[] {
  if (!cuda.available) return [`✗ ${cuda.reason.replaceAll('\n', '\n  ')}`]
  const devices = cuda.devices.map(({ ordinal, name, memoryBytes, kernels, why }) => {
    const mark = kernels.length > 0 ? '✓' : '✗'
    return `${mark} device ${ordinal} ${bold(name)}, ${bytes(memoryBytes)}: ${why}\n    ${kernels.join(', ') || 'no kernels'}`
  })
  return [`  driver for CUDA ${cuda.driverVersion}, ${cuda.devices.length} devices`, ...devices]
}

export const doctor: Command = { summary: 'what this machine can run, and why not', help, run }
