import { InvalidArgumentError } from '@flashmla/spec'
import { describe, expect, it } from 'vitest'
import type { SamplingParams } from './sampler'
import { checkSampling, sampleToken, uniform } from './sampler'

/** Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625 at temperature 1. */
const row = Float32Array.of(0, -1, -2, -3, -3).map((power) => power * Math.LN2)
const none = { tokens: [], promptLength: 0 }

/** How often each token comes over an even sweep of the random number. */
function shares(
  params: SamplingParams,
  history: { tokens: number[]; promptLength: number } = none,
  mask?: Uint32Array,
) {
  const draws = 4096
  const counts = new Array(row.length).fill(0)
  for (let i = 0; i < draws; i++) {
    counts[sampleToken(row, { temperature: 1, ...params }, (i + 0.5) / draws, history, mask).token]++
  }
  return counts.map((count) => count / draws)
}

function expectShares(actual: number[], expected: number[]) {
  expect(actual).toHaveLength(expected.length)
  actual.forEach((share, i) => {
    expect(share).toBeCloseTo(expected[i]!, 2)
  })
}

const scaled = (weights: number[]) => {
  const total = weights.reduce((a, b) => a + b)
  return weights.map((weight) => weight / total)
}

describe('sampleToken', () => {
  it('draws by the probabilities at temperature 1', () => {
    expectShares(shares({}), [0.5, 0.25, 0.125, 0.0625, 0.0625])
  })

  it('sharpens below temperature 1 and flattens above', () => {
    expectShares(shares({ temperature: 0.5 }), scaled([1, 1 / 4, 1 / 16, 1 / 64, 1 / 64]))
    expectShares(shares({ temperature: 2 }), scaled([1, 2 ** -0.5, 1 / 2, 2 ** -1.5, 2 ** -1.5]))
  })

  it('takes the largest at temperature 0, the first of equals', () => {
    expect(sampleToken(row, {}, 0.99, none).token).toBe(0)
    expect(sampleToken(Float32Array.of(1, 3, 3), {}, 0.99, none).token).toBe(1)
  })

  it('keeps the k likeliest', () => {
    expectShares(shares({ topK: 2 }), [2 / 3, 1 / 3, 0, 0, 0])
    expectShares(shares({ topK: 0 }), [0.5, 0.25, 0.125, 0.0625, 0.0625])
  })

  it('keeps the smallest set of probability topP, and always one', () => {
    expectShares(shares({ topP: 0.75 }), [2 / 3, 1 / 3, 0, 0, 0])
    expectShares(shares({ topP: 0.76 }), scaled([4, 2, 1, 0, 0]))
    expectShares(shares({ topP: 0 }), [1, 0, 0, 0, 0])
  })

  it('drops what is less likely than minP times the likeliest', () => {
    expectShares(shares({ minP: 0.2 }), scaled([4, 2, 1, 0, 0]))
    expectShares(shares({ minP: 0.3 }), [2 / 3, 1 / 3, 0, 0, 0])
  })

  it('adds the logit bias', () => {
    expectShares(shares({ logitBias: new Map([[3, 3 * Math.LN2]]) }), scaled([8, 4, 2, 8, 1]))
    expect(sampleToken(row, { logitBias: new Map([[4, 100]]) }, 0, none).token).toBe(4)
    expect(sampleToken(row, { logitBias: new Map([[0, -100]]) }, 0, none).token).toBe(1)
  })

  it('counts what was generated, not the prompt, for frequency and presence', () => {
    const history = { tokens: [1, 0, 0, 2], promptLength: 1 }
    expectShares(shares({ frequencyPenalty: Math.LN2 }, history), scaled([8 / 4, 4, 2 / 2, 1, 1]))
    expectShares(shares({ presencePenalty: Math.LN2 }, history), scaled([8 / 2, 4, 2 / 2, 1, 1]))
    expectShares(shares({ presencePenalty: -Math.LN2 }, history), scaled([8 * 2, 4, 2 * 2, 1, 1]))
  })

  it('weakens repeated tokens of prompt and output, whatever the sign of their logits', () => {
    const logits = Float32Array.of(2, 2, -2, -2)
    const params = { repetitionPenalty: 2, logprobs: 4 }
    const { top } = sampleToken(logits, params, 0, { tokens: [0, 2, 2], promptLength: 1 })
    const of = (token: number) => top!.find((entry) => entry.token === token)!.logprob
    expect(of(1) - of(0)).toBeCloseTo(1, 5)
    expect(of(3) - of(2)).toBeCloseTo(2, 5)
    expect([...logits]).toEqual([2, 2, -2, -2])
  })

  it('takes nothing that the mask forbids', () => {
    expectShares(shares({}, none, Uint32Array.of(0b10110)), scaled([0, 4, 2, 0, 1]))
  })

  it('reports log-probabilities that sum to one, the likeliest first', () => {
    const { token, logprob, top } = sampleToken(row, { logprobs: 5 }, 0, none)
    expect(token).toBe(0)
    expect(logprob).toBeCloseTo(Math.log(0.5), 5)
    expect(top!.map((entry) => entry.token)).toEqual([0, 1, 2, 3, 4])
    expect(top!.reduce((sum, entry) => sum + Math.exp(entry.logprob), 0)).toBeCloseTo(1, 5)
    expect(sampleToken(row, {}, 0, none)).toEqual({ token: 0 })
  })

  it('reports none of the tokens that can not come', () => {
    expect(sampleToken(row, { logprobs: 3 }, 0, none, Uint32Array.of(0b00100)).top).toEqual([{ token: 2, logprob: 0 }])
  })

  it.each([0, 1])('refuses to choose where nothing is left or is a number, at temperature %i', (temperature) => {
    expect(() => sampleToken(row, { temperature }, 0, none, Uint32Array.of(0))).toThrow(InvalidArgumentError)
    expect(() => sampleToken(new Float32Array(5).fill(NaN), { temperature }, 0, none)).toThrow('has the logit NaN')
  })
})

describe('uniform', () => {
  it('depends on seed, sample and position alone, and is spread evenly', () => {
    expect(uniform(7, 1, 5)).toBe(uniform(7, 1, 5))
    const values = Array.from({ length: 4096 }, (_, i) => uniform(7, 0, i))
    expect(new Set([...values, uniform(8, 0, 0), uniform(7, 1, 0), uniform(7 + 2 ** 40, 0, 0)]).size).toBe(4099)
    for (let quarter = 0; quarter < 4; quarter++) {
      const share = values.filter((value) => Math.floor(value * 4) === quarter).length / values.length
      expect(share).toBeCloseTo(0.25, 1)
    }
    expect(Math.max(...values)).toBeLessThan(1)
    expect(Math.min(...values)).toBeGreaterThanOrEqual(0)
  })
})

describe('checkSampling', () => {
  it.each([{ topK: 1.5 }, { topP: -1 }, { minP: 2 }, { seed: 0.5 }, { logitBias: new Map([[9, 1]]) }])(
    'refuses %j',
    (params) => {
      expect(() => checkSampling(params, 5)).toThrow(InvalidArgumentError)
    },
  )
})
