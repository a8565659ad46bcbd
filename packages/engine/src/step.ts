import type { BlockPool, PagedSequence } from '@flashmla/kv-cache'
import type { MlaConfig } from '@flashmla/latent'
import type { BatchStep, Draw } from '@flashmla/spec'
import { InvalidArgumentError, OutOfPagesError } from '@flashmla/spec'
import { checkSampling } from './scheduler/sampler'

/** One sequence's share of a step. */
export interface StepInput {
  readonly sequence: PagedSequence
  /** Token ids to append, at least one. */
  readonly tokens: readonly number[]
  /** Which of the tokens' logits to compute. */
  readonly logits: 'all' | 'last' | 'none'
}

export interface StepLimits {
  readonly maxBatchSize: number
  readonly maxBatchTokens: number
  readonly pool: BlockPool
}

/** A sequence's share of a step whose tokens are drawn where the logits are. */
export interface DrawInput extends StepInput {
  /** For each row of logits that it asks for. */
  readonly draws: readonly Draw[]
}

/**
 * Whether a step can be taken at all, before anything is appended.
 * @throws InvalidArgumentError for tokens or sizes that the model doesn't have, OutOfPagesError
 */
export function checkInputs(
  inputs: readonly StepInput[],
  { vocabSize, maxPositions }: MlaConfig,
  { maxBatchSize, maxBatchTokens, pool }: StepLimits,
): void {
  let total = 0
  for (const { sequence, tokens } of inputs) {
    if (tokens.length === 0) throw new InvalidArgumentError('No tokens were given.', 'Give at least one token id.')
    for (const token of tokens) {
      if (!Number.isInteger(token) || token < 0 || token >= vocabSize) {
        throw new InvalidArgumentError(
          `Token ${token} is not in a vocabulary of ${vocabSize}.`,
          'Use the tokenizer of this model.',
        )
      }
    }
    if (sequence.length + tokens.length > maxPositions) {
      throw new InvalidArgumentError(
        `${sequence.length + tokens.length} tokens are more than the model's ${maxPositions} positions.`,
        'Shorten the prompt or generate fewer tokens.',
      )
    }
    total += tokens.length
  }
  if (inputs.length > maxBatchSize || total > maxBatchTokens) {
    throw new InvalidArgumentError(
      `A step of ${inputs.length} sequences and ${total} tokens is past the model's ${maxBatchSize} and ${maxBatchTokens}.`,
      'Split the step, or load the model with a larger maxBatchSize or maxBatchTokens.',
    )
  }
  if (new Set(inputs.map((input) => input.sequence)).size < inputs.length)
    throw new InvalidArgumentError('A sequence is twice in one step.', 'Give its tokens as one input.')
  let pages = 0
  for (const { sequence, tokens } of inputs) pages += sequence.pagesNeeded(tokens.length)
  if (pages > pool.numFree) throw new OutOfPagesError(pages, pool.numFree)
}

/** A step's tokens as the ragged rows of a batch. */
export interface StepPlan extends BatchStep {
  readonly ids: Int32Array
  readonly positions: Int32Array
  readonly slots: Int32Array
  /** Rows of the step whose logits are asked for. */
  readonly logitRows: Int32Array
}

/** Rows of logits that a sequence asks for. */
export const rowsOf = ({ tokens, logits }: StepInput) => (logits === 'all' ? tokens.length : logits === 'last' ? 1 : 0)

/** Lays the appended sequences out as ragged rows. */
export function planStep(inputs: readonly StepInput[]): StepPlan {
  const stride = Math.max(...inputs.map(({ sequence }) => sequence.blocks.length))
  const n = inputs.reduce((sum, { tokens }) => sum + tokens.length, 0)
  const plan = {
    queryStart: new Int32Array(inputs.length + 1),
    seqLens: Int32Array.from(inputs, ({ sequence }) => sequence.length),
    blockTable: new Int32Array(inputs.length * stride),
    blockTableStride: stride,
    ids: new Int32Array(n),
    positions: new Int32Array(n),
    slots: new Int32Array(n),
    logitRows: new Int32Array(inputs.reduce((sum, input) => sum + rowsOf(input), 0)),
  }
  let row = 0
  let logitRow = 0
  inputs.forEach((input, s) => {
    const { sequence, tokens } = input
    plan.blockTable.set(sequence.blocks, s * stride)
    const first = sequence.length - tokens.length
    tokens.forEach((id, i) => {
      if (i >= tokens.length - rowsOf(input)) plan.logitRows[logitRow++] = row
      plan.ids[row] = id
      plan.positions[row] = first + i
      plan.slots[row++] = sequence.slot(first + i)
    })
    plan.queryStart[s + 1] = row
  })
  return plan
}

/** @throws InvalidArgumentError for a number of draws that is not that of the rows, or a draw that can't be */
export function checkDraws(inputs: readonly DrawInput[], vocabSize: number): void {
  for (const input of inputs) {
    if (input.draws.length !== rowsOf(input))
      throw new InvalidArgumentError(
        `${input.draws.length} draws were given for ${rowsOf(input)} rows of logits.`,
        'Give one for each row that the input asks for.',
      )
    for (const draw of input.draws) {
      checkSampling(draw, vocabSize)
      if (draw.random >= 0 && draw.random < 1) continue
      throw new InvalidArgumentError(`A random number can't be ${draw.random}.`, 'Give one from 0 on and below 1.')
    }
  }
}
