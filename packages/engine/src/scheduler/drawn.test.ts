// Where a step's tokens are drawn.
import { ReferenceBackend } from '@flashmla/cpu'
import type { Draw } from '@flashmla/spec'
import { InvalidArgumentError } from '@flashmla/spec'
import { beforeAll, describe, expect, it } from 'vitest'
import { Model } from '../model'
import { LlmEngine } from './engine'
import type { StepModel } from './options'
import type { GenerationRequest } from './request'
import { fixture, prompts, tokensOf } from './testing/engine-of'

let model: Model
beforeAll(async () => {
  model = await Model.load(fixture, { backend: new ReferenceBackend(), numBlocks: 64, pageSize: 16 })
})

/** The model with a note of how its steps were taken, drawing or not. */
function watched(draws = true): { readonly model: StepModel; readonly taken: Set<string> } {
  const taken = new Set<string>()
  const noting =
    <I, R>(what: string, work: (inputs: I) => R) =>
    (inputs: I) => {
      taken.add(what)
      return work(inputs)
    }
  const parts = {
    step: noting('step', model.step.bind(model)),
    draw: draws ? noting('draw', model.draw!) : undefined,
  }
  return { model: Object.assign(Object.create(model), { config: model.config, pool: model.pool, ...parts }), taken }
}

async function answer(on: StepModel, change: Partial<GenerationRequest>): Promise<number[][]> {
  const engine = new LlmEngine(on)
  try {
    return await tokensOf(engine.submit({ prompt: prompts(3)[2]!, maxTokens: 12, ignoreEos: true, ...change }))
  } finally {
    await engine.dispose()
  }
}

describe('a step draws where its logits are', () => {
  it.each<[string, Partial<GenerationRequest>]>([
    ['the largest', {}],
    ['a temperature', { sampling: { temperature: 0.8, seed: 5 } }],
    ['topP', { sampling: { temperature: 0.8, topP: 0.9, seed: 6 } }],
    ['topK and minP', { sampling: { temperature: 1.3, topK: 20, minP: 0.02, seed: 7 } }],
    ['with guesses', { speculate: 4, sampling: { temperature: 0.1, seed: 8 }, prompt: [5, 6, 7, 5, 6, 7, 5, 6] }],
  ])('for %s, the same tokens as on the host', async (_, change) => {
    const [drawing, plain] = [watched(), watched(false)]
    expect(await answer(drawing.model, change)).toEqual(await answer(plain.model, change))
    expect([[...drawing.taken], [...plain.taken]]).toEqual([['draw'], ['step']])
  })

  it.each<[string, Partial<GenerationRequest>]>([
    ['penalties', { sampling: { frequencyPenalty: 0.5 } }],
    ['a repetition penalty', { sampling: { repetitionPenalty: 1.2 } }],
    ['a bias', { sampling: { logitBias: new Map([[3, 1]]) } }],
    ['log-probabilities', { sampling: { logprobs: 0 } }],
    [
      'a constraint',
      { constraint: () => ({ mask: () => new Uint32Array(64).fill(0xffffffff), accept() {}, ended: false }) },
    ],
  ])('but not with %s', async (_, change) => {
    const { model: drawing, taken } = watched()
    await answer(drawing, change)
    expect([...taken]).toEqual(['step'])
  })

  it('and only the first step of several samples on the host', async () => {
    const change = { n: 3, sampling: { temperature: 1, seed: 9 } }
    const drawing = watched()
    expect(await answer(drawing.model, change)).toEqual(await answer(watched(false).model, change))
    expect([...drawing.taken].sort()).toEqual(['draw', 'step'])
  })

  it('and a request whose logits are not numbers fails by itself', async () => {
    const broken: StepModel = Object.assign(Object.create(model), {
      config: model.config,
      pool: model.pool,
      draw: async (inputs: Parameters<NonNullable<Model['draw']>>[0]) => {
        const rows = await model.draw!(inputs)
        return rows.map((tokens, i) => (inputs[i]!.sequence.length === 5 ? tokens.fill(-1) : tokens))
      },
    })
    const engine = new LlmEngine(broken)
    const submit = (length: number) => engine.submit({ prompt: Array(length).fill(3), maxTokens: 3, ignoreEos: true })
    const [bad, good] = [tokensOf(submit(5)), tokensOf(submit(9))]
    await expect(bad).rejects.toThrow('No token can be chosen: its logits are not numbers')
    expect((await good)[0]).toHaveLength(3)
    await engine.dispose()
  })
})

describe('Model.draw', () => {
  const draw: Draw = { temperature: 1, topK: 0, topP: 1, minP: 0, random: 0.5 }
  it('gives a token for each row that is asked for', async () => {
    const sequences = [model.sequence(), model.sequence(), model.sequence()]
    const [all, last, none] = await model.draw!([
      { sequence: sequences[0]!, tokens: [1, 2, 3], logits: 'all', draws: [draw, { ...draw, temperature: 0 }, draw] },
      { sequence: sequences[1]!, tokens: [1, 2, 3], logits: 'last', draws: [draw] },
      { sequence: sequences[2]!, tokens: [4], logits: 'none', draws: [] },
    ])
    expect([all!.length, last!.length, none!.length]).toEqual([3, 1, 0])
    expect(last![0]).toBe(all![2])
    for (const sequence of sequences) sequence.free()
  })

  it.each<[string, Draw[], string]>([
    ['too few draws', [], '0 draws were given for 1 rows'],
    ['a temperature', [{ ...draw, temperature: -1 }], "temperature can't be -1"],
    ['a random number', [{ ...draw, random: 1 }], "random number can't be 1"],
  ])('refuses %s that can not be, and appends nothing', async (_, draws, message) => {
    const sequence = model.sequence()
    const drawn = () => model.draw!([{ sequence, tokens: [1], logits: 'last', draws }])
    await expect(drawn()).rejects.toThrow(message)
    await expect(drawn()).rejects.toThrow(InvalidArgumentError)
    expect(sequence.length).toBe(0)
    sequence.free()
  })
})
