import type { Draw } from '@flashmla/spec'
import { NEGLIGIBLE, power } from './powers'

/** What is kept of the tokens before one is drawn. */
export type Cut = Omit<Draw, 'random'>

// Work memory of a vocabulary's size, for one draw at a time.
/** By token: its probability, times what all have in common. */
let powers = new Float64Array(0)
/** Upper half: the logit's bits, so that larger ones come first; lower half: the token. Their order is that of the tokens. */
let keys = new BigUint64Array(0)
let words = new Uint32Array(0)

/** One token, likely as e^(logit / temperature) among those that are kept. `largest`: the largest logit; `random` in [0, 1) decides. */
export function draw(logits: Float32Array, largest: number, cut: Cut, random: number): number {
  const { temperature, topK, topP, minP } = cut
  if (powers.length < logits.length) {
    powers = new Float64Array(logits.length)
    keys = new BigUint64Array(logits.length)
    words = new Uint32Array(keys.buffer)
  }
  const floor = minP > 0 ? largest + temperature * Math.log(minP) : -Infinity
  const lowest = Math.max(floor, largest - NEGLIGIBLE * temperature)
  if (topK > 0) return walk(likeliest(logits, lowest, topK, largest, temperature), topP, random)
  const { total, count } = weigh(logits, lowest, largest, temperature)
  return topP < 1 ? walk(nucleus(logits, total, count, topP), topP, random) : walkAll(logits.length, total, random)
}

/** Powers of all tokens, 0 below `lowest`, their sum and how many there are. */
function weigh(logits: Float32Array, lowest: number, largest: number, temperature: number) {
  const all = powers
  let total = 0
  let count = 0
  for (let i = 0; i < logits.length; i++) {
    const logit = logits[i]!
    const mine = logit >= lowest ? power((logit - largest) / temperature) : 0
    all[i] = mine
    total += mine
    if (mine > 0) count++
  }
  return { total, count }
}

function walkAll(length: number, total: number, random: number): number {
  const all = powers
  let target = random * total
  let last = 0
  for (let i = 0; i < length; i++) {
    const mine = all[i]!
    if (mine === 0) continue
    last = i
    target -= mine
    if (target < 0) break
  }
  return last
}

interface Sorted {
  /** Tokens in `words`, the likeliest first. */
  readonly count: number
  readonly total: number
}

/**
 * The tokens that a share `topP` of all may need, sorted. One that is less likely than (1 - topP) / count is not needed: it and all behind it have less
 * than 1 - topP together, so those before it have enough.
 */
function nucleus(logits: Float32Array, total: number, count: number, topP: number): Sorted {
  const least = (total * (1 - topP)) / count
  const all = powers
  const bits = bitsOf(logits)
  let kept = 0
  for (let i = 0; i < logits.length; i++) if (all[i]! >= least && all[i]! > 0) note(kept++, i, bits)
  sort(kept)
  return { count: kept, total }
}

/** The `k` likeliest tokens, sorted, with their powers: those that are behind k others are dropped whenever there are twice as many. */
function likeliest(logits: Float32Array, lowest: number, k: number, largest: number, temperature: number): Sorted {
  const bits = bitsOf(logits)
  const most = Math.min(Math.max(2 * k, 1024), logits.length)
  let [count, worst] = [0, -Infinity]
  for (let i = 0; i < logits.length; i++) {
    const logit = logits[i]!
    if (!(logit >= lowest && logit > worst)) continue
    if (count === most) {
      sort(count)
      count = k
      worst = logits[words[2 * (k - 1)]!]!
      if (logit <= worst) continue
    }
    note(count++, i, bits)
  }
  sort(count)
  count = Math.min(count, k)
  let total = 0
  for (let j = 0; j < count; j++) {
    const token = words[2 * j]!
    powers[token] = power((logits[token]! - largest) / temperature)
    total += powers[token]!
  }
  return { count, total }
}

/** Draws from the first tokens that have `topP` of the total together, and at least one. */
function walk({ count, total }: Sorted, topP: number, random: number): number {
  let kept = 0
  let mass = 0
  while (kept < count && (kept === 0 || mass < topP * total)) mass += powers[words[2 * kept++]!]!
  let target = random * mass
  for (let j = 0; j < kept; j++) {
    target -= powers[words[2 * j]!]!
    if (target < 0) return words[2 * j]!
  }
  return words[2 * (kept - 1)]!
}

const bitsOf = (logits: Float32Array) => new Uint32Array(logits.buffer, logits.byteOffset, logits.length)

function note(at: number, token: number, bits: Uint32Array): void {
  const word = bits[token] === 0x80000000 ? 0 : bits[token]! // -0 is 0
  words[2 * at] = token
  words[2 * at + 1] = word >>> 31 === 1 ? word : ~(word | 0x80000000)
}

function sort(count: number): void {
  keys.subarray(0, count).sort()
}
