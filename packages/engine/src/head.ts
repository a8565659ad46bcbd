import type { MlaConfig } from '@flashmla/latent'
import type { Backend, Draw, Tensor } from '@flashmla/spec'
import { DRAW_COLUMNS, packDraw } from '@flashmla/spec'
import { largestOf, sampleToken } from './scheduler/sampler'
import type { ModelWeights } from './weights'
import type { LogitTensors, Workspace } from './workspace'

const NO_HISTORY = { tokens: [], promptLength: 0 }

/** The output head: logits of rows of the residual stream, or tokens drawn from them. */
export class Head {
  constructor(
    private readonly backend: Backend,
    private readonly weights: ModelWeights,
    private readonly config: MlaConfig,
    private readonly workspace: Workspace,
  ) {}

  /** Logits `[rows, vocab]` of the given rows of x, some rows at a time: all of a long prompt's would fill the memory. */
  async logits(x: Tensor<'f32'>, rows: Int32Array): Promise<Float32Array> {
    const { vocabSize } = this.config
    const most = this.workspace.maxLogitRows
    // A decode step's logits are read in one go: what the backend copied is not copied again.
    if (rows.length > 0 && rows.length <= most) return this.backend.read(this.#queue(x, rows).logits)
    const all = new Float32Array(rows.length * vocabSize)
    for (let first = 0; first < rows.length; first += most)
      all.set(await this.backend.read(this.#queue(x, rows.subarray(first, first + most)).logits), first * vocabSize)
    return all
  }

  /** Tokens of the given rows of x, drawn where their logits are; -1 where a row has none to choose. */
  async tokens(x: Tensor<'f32'>, rows: Int32Array, draws: readonly Draw[]): Promise<Int32Array> {
    const most = this.workspace.maxLogitRows
    const tokens = new Int32Array(rows.length)
    for (let first = 0; first < rows.length; first += most) {
      const work = this.#queue(x, rows.subarray(first, first + most))
      tokens.set(await this.#draw(work, draws.slice(first, first + most)), first)
    }
    return tokens
  }

  #queue(x: Tensor<'f32'>, rows: Int32Array): LogitTensors {
    const { backend, weights } = this
    const work = this.workspace.logits(rows.length)
    backend.write(work.rows, rows)
    backend.gatherRows(work.x, x, work.rows)
    backend.rmsNorm(work.x, work.x, weights.norm, this.config.rmsNormEps)
    backend.linear(work.logits, work.x, weights.head)
    return work
  }

  /** By the backend; rows that it leaves are read and drawn here. */
  async #draw(work: LogitTensors, draws: readonly Draw[]): Promise<Int32Array> {
    const { backend } = this
    const { vocabSize } = this.config
    const packed = new Float32Array(draws.length * DRAW_COLUMNS)
    for (const [row, draw] of draws.entries()) packDraw(packed, row, draw)
    backend.write(work.draws, packed)
    backend.sample!(work.tokens, work.logits, work.draws)
    const tokens = await backend.read(work.tokens)
    for (const [row, draw] of draws.entries()) {
      if (tokens[row]! >= 0) continue
      const view = backend.view(work.logits, [vocabSize], row * vocabSize)
      const logits = await backend.read(view)
      view.dispose()
      if (largestOf(logits) > -Infinity) tokens[row] = sampleToken(logits, draw, draw.random, NO_HISTORY).token
    }
    return tokens
  }
}
