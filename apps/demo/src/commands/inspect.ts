import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { Checkpoint } from '@flashmla/engine'
import { cacheCapacity, capacityTable, parseMlaConfig } from '@flashmla/latent'
import { CheckpointError, InvalidArgumentError } from '@flashmla/spec'
import { modelDirectory } from '@flashmla/tiny-mla'
import { memory } from '../options'
import { bold, bytes, printJson } from '../terminal'
import type { Command } from './command'

const help = `flashmla inspect [DIR] [options]   a model's MLA dimensions, and what its cache costs

  DIR              a Hugging Face checkpoint folder; config.json alone is enough (default: the embedded tiny-mla)
  --memory SIZE    how much memory the cache may take (default 16GiB)
  --json           the same as one JSON object

  npm start -- inspect --memory 80GB
`

async function run(args: readonly string[]): Promise<void> {
  const { values, positionals } = parseArgs({
    args: [...args],
    allowPositionals: true,
    options: { memory: { type: 'string', default: '16GiB' }, json: { type: 'boolean', default: false } },
  })
  if (positionals.length > 1)
    throw new InvalidArgumentError(`${positionals.length} folders were given.`, 'Inspect one at a time.')
  const directory = positionals[0] ?? modelDirectory
  const file = join(directory, 'config.json')
  const json = await readFile(file, 'utf8')
    .then(JSON.parse)
    .catch((cause) => {
      throw new CheckpointError({
        file,
        fact: "the file can't be read as JSON.",
        hint: 'Give the folder of a Hugging Face checkpoint.',
        cause,
      })
    })
  const config = parseMlaConfig(json)
  const memoryBytes = memory('memory', values.memory)
  const capacity = cacheCapacity(config, { memoryBytes })
  const weights = await weightsOf(directory)
  if (values.json) {
    printJson({ directory, config, weights, memoryBytes, capacity })
    return
  }
  const { moe } = config
  const lines: [string, string][] = [
    ['layers', `${config.numLayers}, hidden ${config.hiddenSize}, vocabulary ${config.vocabSize}`],
    ['heads', `${config.numHeads}: q/k ${config.qkNopeHeadDim} + ${config.qkRopeHeadDim} rotary, v ${config.vHeadDim}`],
    ['latent', `kv_lora_rank ${config.kvLoraRank}, q_lora_rank ${config.qLoraRank ?? 'none'}`],
    ['absorbed', `d_qk ${config.kvLoraRank + config.qkRopeHeadDim}, d_v ${config.kvLoraRank}`],
    [
      'rotary',
      `theta ${config.rope.theta}, ${config.rope.interleaved ? 'interleaved' : 'half-split'}${config.rope.yarn ? `, YaRN × ${config.rope.yarn.factor}` : ''}, ${config.maxPositions} positions`,
    ],
    [
      'experts',
      moe
        ? `${moe.router.topK} of ${moe.numExperts} (${moe.router.scoring}, ${moe.router.method}) + ${moe.numSharedExperts} shared, after ${moe.firstDenseLayers} dense layers`
        : 'none',
    ],
    ['weights', weights ? `${weights.tensors} tensors, ${bytes(weights.bytes)}` : 'no safetensors here'],
  ]
  process.stdout.write(`${bold(directory)}\n`)
  for (const [name, value] of lines) process.stdout.write(`  ${name.padEnd(9)} ${value}\n`)
  process.stdout.write(`\n${bold(`Cache in ${bytes(memoryBytes)}`)}\n${capacityTable(capacity)}\n`)
}

/** Undefined where the folder holds a configuration alone. */
async function weightsOf(directory: string): Promise<{ tensors: number; bytes: number } | undefined> {
  try {
    const checkpoint = await Checkpoint.open(directory)
    const found = { tensors: checkpoint.names.length, bytes: checkpoint.bytes }
    await checkpoint.close()
    return found
  } catch (error) {
    if ((error as { cause?: { code?: string } }).cause?.code === 'ENOENT') return undefined
    throw error
  }
}

export const inspect: Command = { summary: "a model's MLA dimensions, and what its cache costs", help, run }
