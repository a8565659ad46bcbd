import type { Draw } from '@flashmla/spec'
import type { DrawInput, StepInput } from '../step'
import type { Branch } from './branch'
import type { StepModel } from './options'
import { cutOf, noToken, type Sample, sampleToken, takesNothingElse, uniform } from './sampler'
import type { Scheduled } from './scheduler'

/** The token that a branch has from a row of its step. */
export type Drawn = (branch: Branch, row: number) => Sample

/** Runs a step. Tokens are drawn where the logits are if the model can and all of the step's can be, else here, when they are asked for. */
export async function runStep(model: StepModel, scheduled: readonly Scheduled[]): Promise<Drawn[]> {
  const inputs = model.draw && drawInputsOf(scheduled)
  if (inputs) {
    const tokens = await model.draw!(inputs)
    return tokens.map((rows) => (_, row) => {
      if (rows[row]! < 0) throw noToken('its logits are not numbers')
      return { token: rows[row]! }
    })
  }
  const logits = await model.step(scheduled.map(inputOf))
  const { vocabSize } = model.config
  return logits.map((rows) => (branch, row) => {
    const { job, index, generated, constraint } = branch
    const random = uniform(job.seed, index, generated)
    const own = rows.subarray(row * vocabSize, (row + 1) * vocabSize)
    return sampleToken(own, job.sampling, random, branch, constraint?.mask())
  })
}

function inputOf({ branch, tokens, drafted, samples }: Scheduled): StepInput {
  return { sequence: branch.sequence!, tokens, logits: !samples ? 'none' : drafted > 0 ? 'all' : 'last' }
}

/** Undefined where more is to be done with any of the logits than to draw. */
function drawInputsOf(scheduled: readonly Scheduled[]): DrawInput[] | undefined {
  const inputs: DrawInput[] = []
  for (const entry of scheduled) {
    const draws = drawsOf(entry)
    if (!draws) return undefined
    inputs.push({ ...inputOf(entry), draws })
  }
  return inputs
}

/** A draw for each row that the branch has; undefined where more is to be done with its logits than to draw. */
function drawsOf({ branch, tokens, drafted, samples }: Scheduled): Draw[] | undefined {
  if (!samples) return []
  const { job, index, generated, constraint } = branch
  const forks = generated === 0 && job.samples > 1 // they share the row
  if (forks || constraint || !takesNothingElse(job.sampling)) return undefined
  const rows = drafted > 0 ? tokens.length : 1
  const cut = cutOf(job.sampling)
  return Array.from({ length: rows }, (_, row) => ({ ...cut, random: uniform(job.seed, index, generated + row) }))
}
