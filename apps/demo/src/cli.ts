#!/usr/bin/env node
import { parseArgs } from 'node:util'
import { ReferenceBackend } from '@flashmla/cpu'
import { generate, loadTokenizer, Model, StreamDecoder } from '@flashmla/engine'
import { FlashMlaError } from '@flashmla/spec'
import { modelDirectory } from '@flashmla/tiny-mla'
import { serve } from './commands/serve'

const help = `flashmla generate [options]   continue a prompt

  --model DIR         a Hugging Face checkpoint folder (default: the embedded tiny-mla)
  --prompt TEXT       what to continue
  --max-tokens N      how many tokens to write (default 96)
  --temperature T     0 is greedy (default 0.8)
  --top-p P           default 0.95
  --seed N            same seed, same text (default 0)
  --json              one JSON object instead of streamed text

  flashmla serve --help   an OpenAI-compatible server and its page

  npm start -- generate --prompt "The whale" --temperature 0
`

async function main(): Promise<void> {
  if (process.argv[2] === 'serve') return serve(process.argv.slice(3))
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      model: { type: 'string', default: modelDirectory },
      prompt: { type: 'string', default: 'It was a dark night upon the sea, and' },
      'max-tokens': { type: 'string', default: '96' },
      temperature: { type: 'string', default: '0.8' },
      'top-p': { type: 'string', default: '0.95' },
      seed: { type: 'string', default: '0' },
      json: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  })
  const command = positionals[0] ?? 'generate'
  if (values.help || command !== 'generate') {
    process.stdout.write(help)
    process.exitCode = values.help ? 0 : 2
    return
  }
  const bar = process.stderr.isTTY && !values.json
  const model = await Model.load(values.model, {
    backend: new ReferenceBackend(),
    progress: (done, total) =>
      bar && process.stderr.write(`\rloading ${done}/${total} tensors${done === total ? '\r\x1b[K' : ''}`),
  })
  const tokenizer = await loadTokenizer(values.model)
  const prompt = tokenizer.encode(values.prompt).ids
  const decoder = new StreamDecoder(tokenizer)
  let text = ''
  let tokens = 0
  const started = performance.now()
  let first = started
  if (!values.json) process.stdout.write(values.prompt)
  for await (const id of generate(model, prompt, {
    maxTokens: Number(values['max-tokens']),
    temperature: Number(values.temperature),
    topP: Number(values['top-p']),
    seed: Number(values.seed),
  })) {
    if (tokens++ === 0) first = performance.now()
    const piece = decoder.push(id)
    text += piece
    if (!values.json) process.stdout.write(piece)
  }
  const ended = performance.now()
  const { config } = model
  const summary = {
    backend: 'reference',
    promptTokens: prompt.length,
    tokens,
    prefillTokensPerSecond: (prompt.length * 1000) / (first - started),
    decodeTokensPerSecond: (Math.max(tokens - 1, 0) * 1000) / (ended - first),
    pages: Math.ceil((prompt.length + tokens) / model.pageSize),
    valuesPerTokenAndLayer: config.kvLoraRank + config.qkRopeHeadDim,
    valuesPerTokenAndLayerMha: config.numHeads * (config.qkNopeHeadDim + config.qkRopeHeadDim + config.vHeadDim),
  }
  if (values.json) {
    process.stdout.write(`${JSON.stringify({ text, ...summary })}\n`)
    return
  }
  process.stdout.write(
    `\n\n${summary.backend} backend: prefill ${summary.prefillTokensPerSecond.toFixed(0)} tokens/s, decode ${summary.decodeTokensPerSecond.toFixed(0)} tokens/s, ` +
      `${summary.pages} pages of ${model.pageSize}; a token caches ${summary.valuesPerTokenAndLayer} values a layer, plain attention ${summary.valuesPerTokenAndLayerMha}.\n`,
  )
}

main().catch((error) => {
  if (!FlashMlaError.isInstance(error) && !(error?.code as string | undefined)?.startsWith('ERR_PARSE_ARGS'))
    throw error
  process.stderr.write(`${error.message}\n`)
  process.exitCode = 1
})
