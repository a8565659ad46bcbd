import { parseArgs } from 'node:util'
import type { TextFinishEvent } from '@flashmla/engine'
import { ChatTemplate, generateText, loadTokenizer, Model } from '@flashmla/engine'
import { InvalidArgumentError } from '@flashmla/spec'
import { modelDirectory } from '@flashmla/tiny-mla'
import { backendHelp, backendOptions, cacheOf, openBackend } from '../backends'
import { number } from '../options'
import { bold, dim, printJson, progressBar } from '../terminal'
import type { Command } from './command'

const help = `flashmla generate [options]   continue a prompt

  --model DIR              a Hugging Face checkpoint folder (default: the embedded tiny-mla)
  --prompt TEXT            what to continue
  --chat TEXT              what to ask, put into the model's chat template
  --max-tokens N           how many tokens to write (default 96)
  --temperature T          0 is greedy (default 0.8)
  --top-k K                keep the k likeliest tokens; 0 keeps all (default 0)
  --top-p P                keep the smallest set of probability P (default 0.95)
  --min-p P                drop tokens less likely than P times the likeliest (default 0)
  --frequency-penalty F, --presence-penalty F, --repetition-penalty F
  --seed N                 same seed, same text (default 0)
  --stop TEXT              end before this text; may be given several times
  --logprobs N             with --json: log-probabilities of each token and N alternatives
  --speculate N            draft up to N tokens a step from the prompt itself (greedy text stays the same)
  --cache FORMAT           f32, bf16 or fp8-656 (default f32, with --fast bf16)
${backendHelp}
  --json                   one JSON object instead of streamed text

  npm start -- generate --prompt "The whale" --temperature 0
`

const options = {
  model: { type: 'string', default: modelDirectory },
  prompt: { type: 'string', default: 'It was a dark night upon the sea, and' },
  chat: { type: 'string' },
  'max-tokens': { type: 'string', default: '96' },
  temperature: { type: 'string', default: '0.8' },
  'top-k': { type: 'string', default: '0' },
  'top-p': { type: 'string', default: '0.95' },
  'min-p': { type: 'string', default: '0' },
  'frequency-penalty': { type: 'string', default: '0' },
  'presence-penalty': { type: 'string', default: '0' },
  'repetition-penalty': { type: 'string', default: '1' },
  seed: { type: 'string', default: '0' },
  stop: { type: 'string', multiple: true, default: [] as string[] },
  logprobs: { type: 'string' },
  speculate: { type: 'string', default: '0' },
  cache: { type: 'string' },
  ...backendOptions,
  json: { type: 'boolean', default: false },
} as const

async function run(args: readonly string[]): Promise<void> {
  const { values } = parseArgs({ args: [...args], options })
  const real = (name: keyof typeof values, low: number, high: number) =>
    number(name, String(values[name]), low, high, false)
  const sampling = {
    maxTokens: number('max-tokens', values['max-tokens'], 1),
    temperature: real('temperature', 0, 100),
    topK: number('top-k', values['top-k'], 0),
    topP: real('top-p', 0, 1),
    minP: real('min-p', 0, 1),
    frequencyPenalty: real('frequency-penalty', -2, 2),
    presencePenalty: real('presence-penalty', -2, 2),
    repetitionPenalty: real('repetition-penalty', 0.01, 100),
    seed: number('seed', values.seed, Number.MIN_SAFE_INTEGER),
    speculate: number('speculate', values.speculate, 0, 64),
    stop: values.stop,
    ...(values.logprobs === undefined ? {} : { logprobs: number('logprobs', values.logprobs, 0, 20) }),
  }
  if (values.stop.includes(''))
    throw new InvalidArgumentError("--stop can't be empty.", 'Give the text that the answer ends before.')
  const cacheFormat = cacheOf(values)
  const { backend } = await openBackend(values)
  try {
    const progress = progressBar('loading', process.stderr.isTTY && !values.json)
    const model = await Model.load(values.model, { backend, cacheFormat, progress, maxBatchSize: 1 })
    const tokenizer = await loadTokenizer(values.model)
    const { chat } = values
    const prompt =
      chat !== undefined
        ? (await ChatTemplate.load(values.model)).render([{ role: 'user', content: chat }])
        : values.prompt
    const promptTokens = tokenizer.encode(prompt).ids.length
    if (!values.json) process.stdout.write(chat === undefined ? bold(prompt) : '')

    let text = ''
    let finish: TextFinishEvent | undefined
    const tokens: object[] = []
    const started = performance.now()
    let first = started
    for await (const event of generateText(model, tokenizer, prompt, sampling)) {
      text += event.text
      if (!values.json) process.stdout.write(event.text)
      if (event.type === 'finish') finish = event
      else {
        if (tokens.length === 0) first = performance.now()
        tokens.push({ token: event.token, logprob: event.logprob, top: event.top })
      }
    }
    const ended = performance.now()
    const { config } = model
    const cached = model.cacheFormat.bytesPerToken * config.numLayers
    const plain = config.numHeads * (config.qkNopeHeadDim + config.qkRopeHeadDim + config.vHeadDim)
    const summary = {
      backend: backend.name,
      finishReason: finish?.reason,
      promptTokens,
      tokens: tokens.length,
      prefillTokensPerSecond: (promptTokens * 1000) / (first - started),
      decodeTokensPerSecond: tokens.length > 1 ? ((tokens.length - 1) * 1000) / (ended - first) : undefined,
      pages: Math.ceil((promptTokens + tokens.length) / model.pageSize),
      pageSize: model.pageSize,
      cacheFormat: model.cacheFormat.name,
      bytesPerToken: cached,
      /** A plain attention cache in the same precision. */
      bytesPerTokenPlainAttention: Math.round((cached * plain) / (config.kvLoraRank + config.qkRopeHeadDim)),
    }
    if (values.json) {
      printJson({ text, ...summary, ...(values.logprobs === undefined ? {} : { logprobs: tokens }) })
    } else {
      const rate = (value: number | undefined) => (value === undefined ? '–' : value.toFixed(0))
      process.stdout.write(
        dim(
          `\n\n${summary.backend}: prefill ${rate(summary.prefillTokensPerSecond)} tokens/s, decode ${rate(summary.decodeTokensPerSecond)} tokens/s; ` +
            `${summary.pages} pages of ${summary.pageSize}; ${summary.cacheFormat} cache of ${cached} bytes a token, plain attention ${summary.bytesPerTokenPlainAttention}.\n`,
        ),
      )
    }
    model.dispose()
  } finally {
    backend.dispose()
  }
}

export const generate: Command = { summary: 'continue a prompt', help, run }
