// What a token costs the host once its logits are there, at the vocabulary of DeepSeek-V3.
import { type SamplingParams, sampleToken } from '../../packages/engine/src/scheduler/sampler'

const VOCAB = 129_280
const ROUNDS = 200

let state = 1
function random(): number {
  state = (state * 48271) % 2147483647
  return state / 2147483647
}

/** Logits as a model's: many about 0, some hundred from 8 to 18. */
const rows = Array.from({ length: 8 }, () => {
  const row = Float32Array.from({ length: VOCAB }, () => (random() + random() + random() + random() - 2) * 4)
  for (let i = 0; i < 200; i++) row[Math.floor(random() * VOCAB)] = 8 + random() * 10
  return row
})
const history = { tokens: Array.from({ length: 2000 }, (_, i) => (i * 7) % VOCAB), promptLength: 1000 }
const cases: Record<string, SamplingParams> = {
  'temperature 0': {},
  'temperature 0.7': { temperature: 0.7 },
  'temperature 0.7, topP 0.95': { temperature: 0.7, topP: 0.95 },
  'temperature 0.7, topK 40': { temperature: 0.7, topK: 40 },
  'temperature 1, topK 40, topP 0.9': { temperature: 1, topK: 40, topP: 0.9 },
  'temperature 1, minP 0.05': { temperature: 1, minP: 0.05 },
  'temperature 3, topP 0.99': { temperature: 3, topP: 0.99 },
  'temperature 0.7, topP 0.95, frequencyPenalty 0.5': { temperature: 0.7, topP: 0.95, frequencyPenalty: 0.5 },
  'temperature 0, 5 logprobs': { logprobs: 5 },
}
for (const [name, params] of Object.entries(cases)) {
  const times: number[] = []
  for (let round = 0; round < ROUNDS; round++) {
    const start = performance.now()
    sampleToken(rows[round % rows.length]!, params, random(), history)
    times.push(performance.now() - start)
  }
  times.sort((a, b) => a - b)
  console.log(`${name}: ${times[ROUNDS / 2]!.toFixed(2)} ms`)
}
