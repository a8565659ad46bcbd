import { InvalidArgumentError } from '@flashmla/spec'
import { type Cut, draw } from './draw'
import { NEGLIGIBLE, power } from './powers'

export interface SamplingParams {
  /** 0 is greedy (the default). */
  readonly temperature?: number
  /** Keep the k likeliest tokens; 0 keeps all. */
  readonly topK?: number
  /** Keep the smallest set of probability ≥ topP. */
  readonly topP?: number
  /** Drop tokens less likely than minP times the likeliest. */
  readonly minP?: number
  /** Subtracted from a logit once for every time that its token was generated. */
  readonly frequencyPenalty?: number
  /** Subtracted from the logit of every token that was generated. */
  readonly presencePenalty?: number
  /** Divides positive and multiplies negative logits of tokens seen in prompt or output (1 is off). */
  readonly repetitionPenalty?: number
  /** Added to the logits of these tokens. */
  readonly logitBias?: ReadonlyMap<number, number>
  /** Same seed, same tokens, whatever else runs. */
  readonly seed?: number
  /** How many log-probabilities of alternatives, where there are so many, to give with each token; undefined gives none at all. */
  readonly logprobs?: number
}

export interface Sample {
  readonly token: number
  readonly logprob?: number
  readonly top?: { token: number; logprob: number }[]
}

/** @throws InvalidArgumentError naming the first parameter outside its range */
export function checkSampling(params: SamplingParams, vocabSize: number): void {
  const range = (name: keyof SamplingParams, low: number, high: number, whole = false) => {
    const value = params[name] as number | undefined
    if (value === undefined) return
    if (!(value >= low && value <= high) || (whole && !Number.isInteger(value)))
      throw new InvalidArgumentError(
        `${name} can't be ${value}.`,
        `Give a ${whole ? 'whole ' : ''}number from ${low} to ${high}.`,
      )
  }
  range('temperature', 0, 100)
  range('topK', 0, vocabSize, true)
  range('topP', 0, 1)
  range('minP', 0, 1)
  range('frequencyPenalty', -2, 2)
  range('presencePenalty', -2, 2)
  range('repetitionPenalty', 0.01, 100)
  range('seed', Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER, true)
  range('logprobs', 0, 20, true)
  for (const [token, bias] of params.logitBias ?? [])
    if (!Number.isInteger(token) || token < 0 || token >= vocabSize || !(Math.abs(bias) <= 100))
      throw new InvalidArgumentError(
        `A logit bias of ${bias} on token ${token} can't be applied.`,
        `Give token ids below ${vocabSize} and biases from −100 to 100.`,
      )
}

/**
 * One token from a row of logits `[vocab]`, which is left as it is. `random` in [0, 1) decides; `generated` and
 * `prompt` are what penalties count. Reported log-probabilities are those of the logits before any of the
 * parameters but the bias, the penalties and the mask were applied, as OpenAI's are.
 * @throws InvalidArgumentError when the mask leaves no token, or the logits are not numbers
 */
export function sampleToken(
  row: Float32Array,
  params: SamplingParams,
  random: number,
  history: { readonly tokens: readonly number[]; readonly promptLength: number },
  mask?: Uint32Array,
): Sample {
  const { temperature, topK, topP, minP } = cutOf(params)
  const logits = adjusted(row, params, history, mask)
  const best = bestOf(logits)
  const largest = logits[best]!
  if (!(largest > -Infinity)) throw noToken(`the best of ${logits.length} has the logit ${largest}`)
  const greedy = temperature === 0 || largest === Infinity
  const token = greedy ? best : draw(logits, largest, { temperature, topK, topP, minP }, random)
  return params.logprobs === undefined
    ? { token }
    : { token, ...logProbabilities(logits, largest, token, params.logprobs) }
}

/** The place of the largest logit; of a NaN when that comes first. */
function bestOf(logits: Float32Array): number {
  let best = 0
  for (let i = 1; i < logits.length; i++) if (logits[i]! > logits[best]!) best = i
  return best
}

/** The largest logit, NaN when that comes first. */
export const largestOf = (logits: Float32Array) => logits[bestOf(logits)]!

export const noToken = (why: string) =>
  new InvalidArgumentError(
    `No token can be chosen: ${why}.`,
    'Give a grammar that some token can follow; if there is none, check the weights.',
  )

/** In float32, as a device has them that draws in place of the host: the same seed gives the same tokens on either. */
export function cutOf({ temperature = 0, topK = 0, topP = 1, minP = 0 }: SamplingParams): Cut {
  return { temperature: Math.fround(temperature), topK, topP: Math.fround(topP), minP: Math.fround(minP) }
}

/** Whether logits are drawn from as they are, and nothing of them is told. */
export function takesNothingElse(params: SamplingParams): boolean {
  const { frequencyPenalty = 0, presencePenalty = 0, repetitionPenalty = 1, logitBias, logprobs } = params
  const penalties = frequencyPenalty !== 0 || presencePenalty !== 0 || repetitionPenalty !== 1
  return !penalties && !logitBias?.size && logprobs === undefined
}

function adjusted(
  row: Float32Array,
  params: SamplingParams,
  history: { readonly tokens: readonly number[]; readonly promptLength: number },
  mask: Uint32Array | undefined,
): Float32Array {
  const { frequencyPenalty = 0, presencePenalty = 0, repetitionPenalty = 1, logitBias } = params
  const penalized = frequencyPenalty !== 0 || presencePenalty !== 0
  if (!penalized && repetitionPenalty === 1 && !logitBias?.size && !mask) return row
  const logits = row.slice()
  if (repetitionPenalty !== 1)
    for (const token of new Set(history.tokens))
      logits[token]! *= logits[token]! < 0 ? repetitionPenalty : 1 / repetitionPenalty
  if (penalized) {
    const counts = new Map<number, number>()
    for (let i = history.promptLength; i < history.tokens.length; i++)
      counts.set(history.tokens[i]!, (counts.get(history.tokens[i]!) ?? 0) + 1)
    for (const [token, count] of counts) logits[token]! -= frequencyPenalty * count + presencePenalty
  }
  for (const [token, bias] of logitBias ?? []) logits[token]! += bias
  if (mask) for (let i = 0; i < logits.length; i++) if (((mask[i >> 5]! >>> (i & 31)) & 1) === 0) logits[i] = -Infinity
  return logits
}

/** Of the token drawn, and of the `count` likeliest, in their order. */
function logProbabilities(logits: Float32Array, largest: number, token: number, count: number) {
  let total = 0
  for (let i = 0; i < logits.length; i++) {
    const less = logits[i]! - largest
    if (less >= -NEGLIGIBLE) total += power(less)
  }
  const norm = largest + Math.log(total)
  const top: { token: number; logprob: number }[] = []
  let worst = -Infinity
  for (let i = 0; i < logits.length && count > 0; i++) {
    const logit = logits[i]!
    if (!(logit > worst)) continue
    const logprob = logit - norm
    let at = top.length
    while (at > 0 && top[at - 1]!.logprob < logprob) at--
    top.splice(at, 0, { token: i, logprob })
    if (top.length > count) top.pop()
    if (top.length === count) worst = logits[top[count - 1]!.token]!
  }
  return { logprob: logits[token]! - norm, top }
}

/**
 * A number in [0, 1) that depends on nothing but its arguments, so that a sample's tokens don't depend on the batch,
 * on preemption or on speculation (a counter-based generator: the finalizer of MurmurHash3 over three words).
 */
export function uniform(seed: number, index: number, position: number): number {
  let h = mix(seed | 0, mix(Math.floor(seed / 4294967296) | 0, 0x9747b28c))
  h = mix(index, h)
  h = mix(position, h)
  return finalize(h) / 4294967296
}

function mix(word: number, hash: number): number {
  let k = Math.imul(word, 0xcc9e2d51)
  k = (k << 15) | (k >>> 17)
  const h = hash ^ Math.imul(k, 0x1b873593)
  return (Math.imul((h << 13) | (h >>> 19), 5) + 0xe6546b64) | 0
}

function finalize(hash: number): number {
  let h = hash ^ (hash >>> 16)
  h = Math.imul(h, 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}
