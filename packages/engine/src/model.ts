import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { BlockPool, PagedSequence } from '@flashmla/kv-cache'
import type { MlaConfig } from '@flashmla/latent'
import { f32Format, parseMlaConfig, ropeTable, softmaxScale } from '@flashmla/latent'
import type { Backend, BatchStep, DType, PagedBatch, PagedCache, Tensor } from '@flashmla/spec'
import { CheckpointError, InvalidArgumentError, OutOfPagesError } from '@flashmla/spec'
import { Checkpoint } from './checkpoint/checkpoint'
import type { LayerWeights, ModelWeights } from './weights'
import { loadWeights } from './weights'

export interface ModelOptions {
  readonly backend: Backend
  /** Tokens a page. */
  readonly pageSize?: number
  /** Pages of the pool; by default enough for one sequence of the model's full context. */
  readonly numBlocks?: number
  /** Sequences of one step (default 64). */
  readonly maxBatchSize?: number
  /** Tokens of one step, over all its sequences (default: the model's positions). */
  readonly maxBatchTokens?: number
  /** `absorbed` attends in the latent space; `naive` rebuilds keys and values. Same function. */
  readonly attention?: 'absorbed' | 'naive'
  readonly progress?: (done: number, total: number) => void
}

/** One sequence's share of a step. */
export interface StepInput {
  readonly sequence: PagedSequence
  /** Token ids to append, at least one. */
  readonly tokens: readonly number[]
  /** Which of the tokens' logits to compute. */
  readonly logits: 'all' | 'last' | 'none'
}

/** The DeepSeek model graph (V2, V2-Lite, V3, R1, Kimi K2) over a paged latent cache. */
export class Model {
  readonly pool: BlockPool
  readonly #caches: PagedCache[]
  readonly #rope: Tensor<'f32'>
  readonly #batch: PagedBatch

  private constructor(
    readonly config: MlaConfig,
    private readonly weights: ModelWeights,
    private readonly backend: Backend,
    readonly pageSize: number,
    numBlocks: number,
    readonly maxBatchSize: number,
    readonly maxBatchTokens: number,
    private readonly attention: 'absorbed' | 'naive',
  ) {
    this.pool = new BlockPool(numBlocks)
    const format = f32Format(config.kvLoraRank, config.qkRopeHeadDim)
    this.#caches = weights.layers.map(() => backend.cache(format, numBlocks, pageSize))
    this.#rope = backend.tensor('f32', [config.maxPositions, config.qkRopeHeadDim / 2, 2])
    backend.write(this.#rope, ropeTable(config.maxPositions, config.qkRopeHeadDim, config.rope))
    this.#batch = backend.batch({
      maxSequences: this.maxBatchSize,
      maxTokens: this.maxBatchTokens,
      maxBlocks: Math.ceil(config.maxPositions / pageSize),
    })
  }

  /** Reads config.json and the safetensors of a Hugging Face folder. */
  static async load(directory: string, options: ModelOptions): Promise<Model> {
    const file = join(directory, 'config.json')
    const text = await readFile(file, 'utf8').catch((cause) => {
      throw new CheckpointError({
        file,
        fact: "the file can't be read.",
        hint: 'Give the folder of a Hugging Face checkpoint.',
        cause,
      })
    })
    let json: unknown
    try {
      json = JSON.parse(text)
    } catch (cause) {
      throw new CheckpointError({ file, fact: 'it is not JSON.', cause })
    }
    const config = parseMlaConfig(json)
    const pageSize = options.pageSize ?? 64
    const checkpoint = await Checkpoint.open(directory)
    try {
      let done = 0
      const weights = await loadWeights(checkpoint, config, options.backend, () =>
        options.progress?.(++done, checkpoint.names.length),
      )
      const numBlocks = options.numBlocks ?? Math.ceil(config.maxPositions / pageSize)
      return new Model(
        config,
        weights,
        options.backend,
        pageSize,
        numBlocks,
        options.maxBatchSize ?? 64,
        options.maxBatchTokens ?? config.maxPositions,
        options.attention ?? 'absorbed',
      )
    } finally {
      await checkpoint.close()
    }
  }

  sequence(): PagedSequence {
    return new PagedSequence(this.pool, this.pageSize)
  }

  /** Appends `tokens` to the sequence and returns their logits `[tokens, vocab]`. Nothing is appended when it throws. */
  async forward(sequence: PagedSequence, tokens: readonly number[]): Promise<Float32Array> {
    const [logits] = await this.step([{ sequence, tokens, logits: 'all' }])
    return logits!
  }

  /**
   * One pass over several sequences: appends each one's tokens and returns the logits that each asked for,
   * `[rows, vocab]`. Nothing is appended when it throws.
   */
  async step(inputs: readonly StepInput[]): Promise<Float32Array[]> {
    const { config, backend } = this
    this.#check(inputs)
    for (const { sequence, tokens } of inputs) {
      const copy = sequence.appendTokens(tokens)
      if (copy) for (const cache of this.#caches) backend.copyBlock(cache, copy.from, copy.to, copy.slots)
    }
    const plan = planStep(inputs)
    this.#batch.update(plan)
    const scratch = new Scratch(backend)
    const positions = scratch.i32(plan.positions)
    const slots = scratch.i32(plan.slots)
    const n = plan.ids.length
    const x = scratch.f32(n, config.hiddenSize)
    const normed = scratch.f32(n, config.hiddenSize)
    backend.embed(x, this.weights.embed, scratch.i32(plan.ids))
    this.weights.layers.forEach((layer, l) => {
      backend.rmsNorm(normed, x, layer.inputNorm, config.rmsNormEps)
      this.#attend(scratch, layer, this.#caches[l]!, x, normed, positions, slots)
      backend.rmsNorm(normed, x, layer.postNorm, config.rmsNormEps)
      this.#feedForward(scratch, layer, x, normed)
    })
    const rows = plan.logitRows.length
    let result: Float32Array = new Float32Array(0)
    if (rows > 0) {
      const last = scratch.f32(rows, config.hiddenSize)
      const logits = scratch.f32(rows, config.vocabSize)
      backend.gatherRows(last, x, scratch.i32(plan.logitRows))
      backend.rmsNorm(last, last, this.weights.norm, config.rmsNormEps)
      backend.linear(logits, last, this.weights.head)
      result = await backend.read(logits)
    }
    scratch.dispose()
    let row = 0
    return inputs.map((input) => {
      const first = row
      row += rowsOf(input)
      return result.subarray(first * config.vocabSize, row * config.vocabSize)
    })
  }

  /** Frees the weights, caches and work memory. */
  dispose(): void {
    this.#batch.dispose()
    this.#rope.dispose()
    for (const cache of this.#caches) cache.dispose()
  }

  #check(inputs: readonly StepInput[]): void {
    const { vocabSize, maxPositions } = this.config
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
    if (inputs.length > this.maxBatchSize || total > this.maxBatchTokens) {
      throw new InvalidArgumentError(
        `A step of ${inputs.length} sequences and ${total} tokens is past the model's ${this.maxBatchSize} and ${this.maxBatchTokens}.`,
        'Split the step, or load the model with a larger maxBatchSize or maxBatchTokens.',
      )
    }
    if (new Set(inputs.map((input) => input.sequence)).size < inputs.length)
      throw new InvalidArgumentError('A sequence is twice in one step.', 'Give its tokens as one input.')
    let pages = 0
    for (const { sequence, tokens } of inputs) pages += sequence.pagesNeeded(tokens.length)
    if (pages > this.pool.numFree) throw new OutOfPagesError(pages, this.pool.numFree)
  }

  #attend(
    scratch: Scratch,
    layer: LayerWeights,
    cache: PagedCache,
    x: Tensor<'f32'>,
    normed: Tensor<'f32'>,
    positions: Tensor<'i32'>,
    slots: Tensor<'i32'>,
  ): void {
    const { backend } = this
    const {
      numHeads: h,
      kvLoraRank: r,
      qkNopeHeadDim: nope,
      qkRopeHeadDim: rope,
      vHeadDim: v,
      rmsNormEps,
      hiddenSize,
    } = this.config
    const interleaved = this.config.rope.interleaved
    const n = x.shape[0]!
    let queryInput = normed
    if (layer.qA) {
      const down = scratch.f32(n, layer.qA.norm.shape[0]!)
      queryInput = scratch.f32(n, layer.qA.norm.shape[0]!)
      backend.linear(down, normed, layer.qA.weight)
      backend.rmsNorm(queryInput, down, layer.qA.norm, rmsNormEps)
    }
    const q = scratch.f32(n, h, nope + rope)
    backend.linear(q, queryInput, layer.qB)
    backend.rotary(q, nope, this.#rope, positions, interleaved)

    const kv = scratch.f32(n, r + rope)
    const compressed = scratch.f32(n, r)
    backend.linear(kv, normed, layer.kvA)
    backend.rotary(kv, r, this.#rope, positions, interleaved)
    backend.copyColumns(compressed, 0, kv, 0, r)
    backend.rmsNorm(compressed, compressed, layer.kvNorm, rmsNormEps)
    backend.copyColumns(kv, 0, compressed, 0, r)
    backend.append(cache, kv, slots)

    const scale = softmaxScale(this.config)
    const heads = scratch.f32(n, h, v)
    if (this.attention === 'naive') {
      backend.naiveAttention(heads, q, layer.kvB, cache, this.#batch, scale)
    } else {
      const qNope = scratch.f32(n, h, nope)
      const qLatent = scratch.f32(n, h, r)
      const absorbed = scratch.f32(n, h, r + rope)
      const latentOut = scratch.f32(n, h, r)
      backend.copyColumns(qNope, 0, q, 0, nope)
      backend.headLinear(qLatent, qNope, layer.uk)
      backend.copyColumns(absorbed, 0, qLatent, 0, r)
      backend.copyColumns(absorbed, r, q, nope, rope)
      backend.attention(latentOut, scratch.f32(n, h), absorbed, cache, this.#batch, scale)
      backend.headLinear(heads, latentOut, layer.uv)
    }
    const projected = scratch.f32(n, hiddenSize)
    backend.linear(projected, heads, layer.o)
    backend.add(x, projected)
  }

  #feedForward(scratch: Scratch, layer: LayerWeights, x: Tensor<'f32'>, normed: Tensor<'f32'>): void {
    const { backend } = this
    const n = x.shape[0]!
    if (layer.moe) {
      const router = this.config.moe!.router
      const logits = scratch.f32(n, layer.moe.experts.length)
      const ids = scratch.keep(backend.tensor('i32', [n, router.topK]))
      const weights = scratch.f32(n, router.topK)
      backend.linear(logits, normed, layer.moe.gate)
      backend.route(ids, weights, logits, layer.moe.bias, router)
      backend.experts(x, normed, ids, weights, layer.moe.experts)
    }
    if (layer.dense) {
      const inner = layer.dense.gate.shape[0]!
      const gate = scratch.f32(n, inner)
      const up = scratch.f32(n, inner)
      const down = scratch.f32(n, this.config.hiddenSize)
      backend.linear(gate, normed, layer.dense.gate)
      backend.linear(up, normed, layer.dense.up)
      backend.siluMul(gate, gate, up)
      backend.linear(down, gate, layer.dense.down)
      backend.add(x, down)
    }
  }
}

interface StepPlan extends BatchStep {
  readonly ids: Int32Array
  readonly positions: Int32Array
  readonly slots: Int32Array
  /** Rows of the step whose logits are asked for. */
  readonly logitRows: Int32Array
}

const rowsOf = ({ tokens, logits }: StepInput) => (logits === 'all' ? tokens.length : logits === 'last' ? 1 : 0)

/** Lays the appended sequences out as ragged rows. */
function planStep(inputs: readonly StepInput[]): StepPlan {
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

/** Tensors that live as long as one forward pass. */
class Scratch {
  readonly #kept: Tensor[] = []
  constructor(private readonly backend: Backend) {}

  f32(...shape: number[]): Tensor<'f32'> {
    return this.keep(this.backend.tensor('f32', shape))
  }

  i32(data: Int32Array): Tensor<'i32'> {
    const tensor = this.keep(this.backend.tensor('i32', [data.length]))
    this.backend.write(tensor, data)
    return tensor
  }

  keep<D extends DType>(tensor: Tensor<D>): Tensor<D> {
    this.#kept.push(tensor)
    return tensor
  }

  dispose(): void {
    for (const tensor of this.#kept) tensor.dispose()
  }
}
