import { availableParallelism, cpus, freemem, totalmem } from 'node:os'
import { parseArgs } from 'node:util'
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
  const backends = await checkBackends()
  if (values.json) {
    printJson({ machine, backends })
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
}

export const doctor: Command = { summary: 'what this machine can run, and why not', help, run }
