import { writeFile } from 'node:fs/promises'
import { parseArgs } from 'node:util'
import { encodeSafetensors, Model } from '@flashmla/engine'
import { InvalidArgumentError } from '@flashmla/spec'
import { modelDirectory } from '@flashmla/tiny-mla'
import { backendHelp, backendOptions, cacheOf, openBackend } from '../backends'
import { choice } from '../options'
import { printJson, progressBar } from '../terminal'
import type { Command } from './command'

const help = `flashmla logits --token-ids JSON --output FILE [options]   the logits of every position, for porting a model

  --model DIR          a Hugging Face checkpoint folder (default: the embedded tiny-mla)
  --token-ids JSON     rows of equal length, as [[1, 2, 3], [4, 5, 6]]
  --output FILE        a safetensors file with logits [b, s, vocab], float32
  --attention FORM     absorbed or naive (default absorbed)
${backendHelp}
  --json               the result's description as one JSON object

  npm start -- logits --token-ids '[[1, 2, 3]]' --output /tmp/logits.safetensors
`

async function run(args: readonly string[]): Promise<void> {
  const { values } = parseArgs({
    args: [...args],
    options: {
      model: { type: 'string', default: modelDirectory },
      'token-ids': { type: 'string' },
      output: { type: 'string' },
      attention: { type: 'string', default: 'absorbed' },
      ...backendOptions,
      json: { type: 'boolean', default: false },
    },
  })
  const rows = tokenRows(values['token-ids'])
  if (!values.output)
    throw new InvalidArgumentError('No --output was given.', 'Name the safetensors file that is to be written.')
  const attention = choice('attention', values.attention, ['absorbed', 'naive'])
  const cacheFormat = cacheOf(values)
  const { backend } = await openBackend(values)
  try {
    const length = rows[0]!.length
    const progress = progressBar('loading', process.stderr.isTTY && !values.json)
    const model = await Model.load(values.model, { backend, attention, cacheFormat, progress, maxBatchSize: 1 })
    const { vocabSize } = model.config
    const logits = new Float32Array(rows.length * length * vocabSize)
    for (const [b, row] of rows.entries()) {
      const sequence = model.sequence()
      for (let first = 0; first < length; first += model.maxBatchTokens) {
        const part = await model.forward(sequence, row.slice(first, first + model.maxBatchTokens))
        logits.set(part, (b * length + first) * vocabSize)
      }
      sequence.free()
    }
    const shape = [rows.length, length, vocabSize]
    await writeFile(values.output, encodeSafetensors({ logits: { shape, data: logits } })).catch((error) => {
      throw new InvalidArgumentError(
        `${values.output} can't be written: ${error.code}.`,
        'Name a file in a folder that exists.',
      )
    })
    const report = { output: values.output, tensor: 'logits', dtype: 'F32', shape, backend: backend.name }
    if (values.json) printJson(report)
    else process.stdout.write(`logits [${shape.join(', ')}] float32 to ${values.output} (${backend.name})\n`)
    model.dispose()
  } finally {
    backend.dispose()
  }
}

function tokenRows(text: string | undefined): number[][] {
  const refuse = (fact: string) =>
    new InvalidArgumentError(fact, "Give rows of equal length: --token-ids '[[1, 2, 3], [4, 5, 6]]'.")
  if (text === undefined) throw refuse('No --token-ids were given.')
  let rows: unknown
  try {
    rows = JSON.parse(text)
  } catch {
    throw refuse(`--token-ids is not JSON: ${text}`)
  }
  const whole = (row: unknown) => Array.isArray(row) && row.length > 0 && row.every((id) => Number.isInteger(id))
  if (!Array.isArray(rows) || rows.length === 0 || !rows.every(whole))
    throw refuse('--token-ids holds no rows of whole numbers.')
  if (rows.some((row) => row.length !== rows[0].length)) throw refuse('The rows of --token-ids differ in length.')
  return rows
}

export const logits: Command = { summary: 'the logits of every position, for porting a model', help, run }
