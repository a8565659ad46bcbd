import { existsSync } from 'node:fs'
import { basename, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { ChatTemplate, LlmEngine, loadTokenizer, Model } from '@flashmla/engine'
import { InvalidArgumentError } from '@flashmla/spec'
import { modelDirectory } from '@flashmla/tiny-mla'
import pino from 'pino'
import { backendHelp, backendOptions, cacheOf, openBackend } from '../backends'
import { number as wholeNumber } from '../options'
import { defaultLimits, startServer } from '../server/server'

export const serveHelp = `flashmla serve [options]   OpenAI's API and a page that shows the cache

  --model DIR            a Hugging Face checkpoint folder (default: the embedded tiny-mla)
  --served-name NAME     the model id that clients use (default: the folder's name)
  --host ADDRESS         default 127.0.0.1: this machine alone
  --port N               default 8000; 0 takes any free port
  --api-key KEY          may be given several times; also FLASHMLA_API_KEYS, comma-separated
  --pages N              pages of the cache (default 512)
  --page-size N          tokens of a page (default 16, with --fast 64)
  --cache FORMAT         f32, bf16 or fp8-656 (default f32, with --fast bf16)
  --max-batch N          sequences of one step (default 32)
  --max-batch-tokens N   tokens of one step (default 256, on a GPU 1024)
  --max-queued N         requests that may wait before 429 (default 256)
  --max-concurrent N     requests of one key at a time (default ${defaultLimits.maxConcurrent})
  --max-tokens N         new tokens of one sample (default ${defaultLimits.maxTokens})
  --max-body BYTES       default ${defaultLimits.maxBodyBytes}
  --timeout SECONDS      of one request (default ${defaultLimits.timeoutMs / 1000})
  --flush-interval MS    that a streamed token may wait to be written with the next (default ${defaultLimits.flushMs}; 0: never)
  --grace SECONDS        what runs may take to end after SIGTERM (default 30)
  --no-prefix-cache      remember no prompts
  --log-level LEVEL      debug, info, warn or silent (default info)
  --log-prompts          write prompts to the log
${backendHelp}

  npm start -- serve
  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' -d '{"prompt": "The whale", "max_tokens": 40}'
`

const logLevels = ['debug', 'info', 'warn', 'silent']

const options = {
  model: { type: 'string', default: modelDirectory },
  'served-name': { type: 'string' },
  host: { type: 'string', default: '127.0.0.1' },
  port: { type: 'string', default: '8000' },
  'api-key': { type: 'string', multiple: true, default: [] as string[] },
  pages: { type: 'string', default: '512' },
  'page-size': { type: 'string' },
  cache: { type: 'string' },
  'max-batch': { type: 'string', default: '32' },
  'max-batch-tokens': { type: 'string' },
  'max-queued': { type: 'string', default: '256' },
  'max-concurrent': { type: 'string', default: String(defaultLimits.maxConcurrent) },
  'max-tokens': { type: 'string', default: String(defaultLimits.maxTokens) },
  'max-body': { type: 'string', default: String(defaultLimits.maxBodyBytes) },
  timeout: { type: 'string', default: String(defaultLimits.timeoutMs / 1000) },
  'flush-interval': { type: 'string', default: String(defaultLimits.flushMs) },
  grace: { type: 'string', default: '30' },
  'no-prefix-cache': { type: 'boolean', default: false },
  'log-level': { type: 'string', default: 'info' },
  'log-prompts': { type: 'boolean', default: false },
  ...backendOptions,
  help: { type: 'boolean', short: 'h', default: false },
} as const

/** Serves until SIGTERM or SIGINT, then drains. */
export async function serve(args: readonly string[]): Promise<void> {
  const { values } = parseArgs({ args: [...args], options })
  if (values.help) {
    process.stdout.write(serveHelp)
    return
  }
  const number = (name: keyof typeof values, low: number, high = 2 ** 31 - 1) =>
    wholeNumber(name, String(values[name]), low, high)
  const level = values['log-level']
  if (!logLevels.includes(level))
    throw new InvalidArgumentError(`--log-level can't be ${level}.`, `Give one of ${logLevels.join(', ')}.`)
  const grace = number('grace', 0, 2_000_000) * 1000
  if (values.host === '')
    throw new InvalidArgumentError(
      "--host can't be empty.",
      'Give an address; 0.0.0.0 is every one that this machine has.',
    )
  if (values['api-key'].includes(''))
    throw new InvalidArgumentError("--api-key can't be empty.", 'Give a key; without the option everyone may ask.')
  const cacheFormat = cacheOf(values)
  const given = (name: 'page-size' | 'max-batch-tokens') => (values[name] === undefined ? undefined : number(name, 1))
  const pageSize = given('page-size') ?? (values.fast ? 64 : 16)
  const asked = given('max-batch-tokens')
  const { id: became, backend } = await openBackend(values)
  // A GPU's step of many tokens takes little longer than one of some.
  const maxBatchTokens = asked ?? (became === 'cuda' ? 1024 : 256)
  const model = await Model.load(values.model, {
    backend,
    cacheFormat,
    pageSize,
    numBlocks: number('pages', 1),
    maxBatchSize: number('max-batch', 1),
    maxBatchTokens,
  })
  const { config } = model
  const latentBytesPerToken = model.cacheFormat.bytesPerToken * config.numLayers
  const widths = {
    latent: config.kvLoraRank + config.qkRopeHeadDim,
    head: config.qkNopeHeadDim + config.qkRopeHeadDim + config.vHeadDim,
  }
  const engine = new LlmEngine(model, { maxQueued: number('max-queued', 1), prefixCache: !values['no-prefix-cache'] })
  const keys = [
    ...values['api-key'],
    ...(process.env.FLASHMLA_API_KEYS ?? '').split(',').map((key) => key.trim()),
  ].filter(Boolean)
  const logger = pino({ level }, pino.destination(2))
  const webRoot = fileURLToPath(new URL('./web', import.meta.url))
  const id = values['served-name'] ?? (values.model === modelDirectory ? 'tiny-mla' : basename(resolve(values.model)))
  const port = number('port', 0, 65535)
  const server = await startServer({
    engine,
    tokenizer: await loadTokenizer(values.model),
    tokenizerDirectory: values.model,
    chat: await ChatTemplate.load(values.model),
    model: {
      id,
      created: Math.floor(Date.now() / 1000),
      backend: backend.name,
      maxPositions: Math.min(config.maxPositions, model.pool.numBlocks * model.pageSize),
      latentBytesPerToken,
      mhaBytesPerToken: Math.round((latentBytesPerToken * config.numHeads * widths.head) / widths.latent),
    },
    host: values.host,
    port,
    apiKeys: keys,
    limits: {
      maxBodyBytes: number('max-body', 1),
      maxTokens: number('max-tokens', 1),
      maxConcurrent: number('max-concurrent', 1),
      timeoutMs: number('timeout', 1, 2_000_000) * 1000,
      flushMs: number('flush-interval', 0, 1000),
    },
    ...(existsSync(webRoot) ? { webRoot } : {}),
    logger,
    logPrompts: values['log-prompts'],
  }).catch((error: NodeJS.ErrnoException) => {
    if (error.syscall !== 'listen' && error.syscall !== 'getaddrinfo') throw error
    const taken = error.code === 'EADDRINUSE'
    throw new InvalidArgumentError(
      `Can't listen on ${values.host} port ${port}: ${taken ? 'another process does' : error.message}.`,
      taken ? 'Give another --port; 0 takes any free one.' : 'Give another --host or --port.',
    )
  })
  process.stdout.write(`${id} on ${server.url} (${backend.name} backend): the page is there, the API under /v1.\n`)
  const stop = await new Promise<string>((resolve) => {
    process.once('SIGTERM', () => resolve('SIGTERM'))
    process.once('SIGINT', () => resolve('SIGINT'))
  })
  logger.info({ signal: stop }, 'draining')
  await server.close(grace)
  model.dispose()
  backend.dispose()
}
