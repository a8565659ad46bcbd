import { uniform } from '@flashmla/engine'

export interface PlannedRequest {
  /** Milliseconds after the start. */
  readonly at: number
  readonly prompt: readonly number[]
  readonly maxTokens: number
}

export interface WorkloadOptions {
  readonly requests: number
  /** Requests a second; arrivals are a Poisson process, so they don't wait for answers (open loop). */
  readonly rate: number
  readonly seed: number
  readonly vocabSize: number
  /** Multiplies the lengths of the mix, for models of short context. */
  readonly scale: number
  /** Tokens that every prompt begins with. */
  readonly systemPrompt?: number
}

/**
 * Lengths like those of ShareGPT conversations as serving papers use them (vLLM, SOSP 2023, figure 11: mean 161 prompt
 * and 338 answer tokens, long tails): log-normal, cut at 1024 and 1024, then scaled.
 */
export function planWorkload(options: WorkloadOptions): PlannedRequest[] {
  const { requests, rate, seed, vocabSize, scale, systemPrompt = 0 } = options
  let at = 0
  return Array.from({ length: requests }, (_, i) => {
    const random = (k: number) => Math.max(uniform(seed, i, k), 1e-9)
    at += (-Math.log(random(0)) / rate) * 1000
    const length = (mean: number, sigma: number, k: number) => {
      const normal = Math.sqrt(-2 * Math.log(random(k))) * Math.cos(2 * Math.PI * random(k + 1))
      const value = mean * Math.exp(sigma * normal - sigma ** 2 / 2)
      return Math.max(1, Math.round(Math.min(1024, value) * scale))
    }
    const own = Array.from(
      { length: length(161, 1.1, 1) },
      (_, j) => 2 + Math.floor(uniform(seed + i, 1, j) * (vocabSize - 2)),
    )
    const shared = Array.from({ length: systemPrompt }, (_, j) => 2 + ((j * 7919) % (vocabSize - 2)))
    return { at, prompt: [...shared, ...own], maxTokens: length(338, 0.9, 3) }
  })
}
