import { join } from 'node:path'
import { BlockPool, PagedSequence } from '@flashmla/kv-cache'
import type { MlaConfig } from '@flashmla/latent'
import { parseMlaConfig, ropeTable, softmaxScale } from '@flashmla/latent'
import type { Backend, CacheFormat, PagedBatch, PagedCache, Tensor } from '@flashmla/spec'
import { CheckpointError } from '@flashmla/spec'
import type { CacheFormatName } from './cache-formats'
import { cacheFormat } from './cache-formats'
import { Checkpoint } from './checkpoint/checkpoint'
import { checkQuantization } from './checkpoint/fp8-block'
import { readJsonObject } from './checkpoint/json-file'
import * as fused from './fused'
import { endTokensOf } from './generation-config'
import { Head } from './head'
import type { DrawInput, StepInput, StepPlan } from './step'
import { checkDraws, checkInputs, planStep, rowsOf } from './step'
import type { LayerWeights, ModelWeights } from './weights'
import { disposeWeights, loadWeights } from './weights'
import type { FeedForwardTensors, StepTensors } from './workspace'
import { Workspace } from './workspace'

export interface ModelOptions {
  readonly backend: Backend
  /** Tokens a page. */
  readonly pageSize?: number
  /** Pages of the pool; by default enough for one sequence of the model's full context. */
  readonly numBlocks?: number
  /** Sequences of one step (default 64). */
  readonly maxBatchSize?: number
  /** Tokens of one step, over all its sequences (default: the model's positions, at most 1024). Sizes the work memory. */
  readonly maxBatchTokens?: number
  /** `absorbed` attends in the latent space; `naive` rebuilds keys and values. Same function. */
  readonly attention?: 'absorbed' | 'naive'
  /** How cached rows are stored (default f32, which is exact; bf16 halves the cache, fp8-656 nearly quarters it). */
  readonly cacheFormat?: CacheFormatName | CacheFormat
  /** Hears each tensor that was read, and how many the model has. */
  readonly progress?: (done: number, total: number) => void
}

/** The DeepSeek model graph (V2, V2-Lite, V3, R1, Kimi K2) over a paged latent cache. */
export class Model {
  readonly pool: BlockPool
  readonly #caches: PagedCache[]
  readonly #rope: Tensor<'f32'>
  readonly #batch: PagedBatch
  readonly #workspace: Workspace
  readonly #head: Head
  /** What the model made, in the order of making. */
  readonly #owned: { dispose(): void }[] = []
  /**
   * As `step`, with tokens drawn from the logits where those are, one for each row: -1 where a row has none to choose. Undefined where the backend
   * doesn't draw (`Backend.sample`). @throws InvalidArgumentError for draws that can't be
   */
  readonly draw: ((inputs: readonly DrawInput[]) => Promise<Int32Array[]>) | undefined
  /** The step that was asked for last: the next one waits for it, since they share the work memory. */
  #last: Promise<unknown> = Promise.resolve()

  private constructor(
    readonly config: MlaConfig,
    private readonly weights: ModelWeights,
    private readonly backend: Backend,
    readonly pageSize: number,
    numBlocks: number,
    readonly maxBatchSize: number,
    readonly maxBatchTokens: number,
    readonly cacheFormat: CacheFormat,
  ) {
    this.draw = backend.sample && ((inputs) => this.#draw(inputs))
    const own = <T extends { dispose(): void }>(resource: T): T => {
      this.#owned.push(resource)
      return resource
    }
    try {
      this.#caches = weights.layers.map(() => own(backend.cache(cacheFormat, numBlocks, pageSize)))
      this.pool = new BlockPool(numBlocks) // what the caches have no room for costs no time here
      this.#rope = own(backend.tensor('f32', [config.maxPositions, config.qkRopeHeadDim / 2, 2]))
      backend.write(this.#rope, ropeTable(config.maxPositions, config.qkRopeHeadDim, config.rope))
      this.#batch = own(
        backend.batch({
          maxSequences: this.maxBatchSize,
          maxTokens: this.maxBatchTokens,
          maxBlocks: Math.ceil(config.maxPositions / pageSize),
        }),
      )
      const logitRows = Math.min(maxBatchTokens, 64)
      this.#workspace = own(new Workspace(backend, config, this.maxBatchTokens, logitRows, maxBatchSize))
      this.#head = new Head(backend, weights, config, this.#workspace)
    } catch (error) {
      for (const resource of this.#owned) resource.dispose()
      throw error
    }
  }

  /** Reads config.json, generation_config.json and the safetensors of a Hugging Face folder. What was read is freed again when it throws. */
  static async load(directory: string, options: ModelOptions): Promise<Model> {
    const file = join(directory, 'config.json')
    const json = await readJsonObject(file)
    if (!json)
      throw new CheckpointError({
        file,
        fact: 'the file is missing.',
        hint: 'Give the folder of a Hugging Face checkpoint.',
      })
    const parsed = parseMlaConfig(json)
    const config = { ...parsed, eosTokenIds: (await endTokensOf(directory)) ?? parsed.eosTokenIds }
    checkQuantization(json)
    const pageSize = options.pageSize ?? 64
    const attention = options.attention ?? 'absorbed'
    const format = cacheFormat(options.cacheFormat ?? 'f32', config)
    const checkpoint = await Checkpoint.open(directory)
    try {
      const weights = await loadWeights(checkpoint, config, options.backend, attention, options.progress)
      const numBlocks = options.numBlocks ?? Math.ceil(config.maxPositions / pageSize)
      try {
        return new Model(
          config,
          weights,
          options.backend,
          pageSize,
          numBlocks,
          options.maxBatchSize ?? 64,
          options.maxBatchTokens ?? Math.min(config.maxPositions, 1024),
          format,
        )
      } catch (error) {
        disposeWeights(weights)
        throw error
      }
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
   * `[rows, vocab]`. Nothing is appended when it throws. Steps run one after the other, in the order of the calls.
   */
  step(inputs: readonly StepInput[]): Promise<Float32Array[]> {
    return this.#inOrder(inputs, async (x, plan) => {
      const logits = await this.#head.logits(x, plan.logitRows)
      const { vocabSize } = this.config
      return sliced(inputs, (first, last) => logits.subarray(first * vocabSize, last * vocabSize))
    })
  }

  async #draw(inputs: readonly DrawInput[]): Promise<Int32Array[]> {
    checkDraws(inputs, this.config.vocabSize)
    return this.#inOrder(inputs, async (x, plan) => {
      const draws = inputs.flatMap((input) => input.draws)
      const tokens = await this.#head.tokens(x, plan.logitRows, draws)
      return sliced(inputs, (first, last) => tokens.subarray(first, last))
    })
  }

  #inOrder<T>(inputs: readonly StepInput[], results: Results<T>): Promise<T[]> {
    const step = this.#last.then(() => this.#take(inputs, results))
    const done = () => {}
    this.#last = step.then(done, done)
    return step
  }

  async #take<T>(inputs: readonly StepInput[], results: Results<T>): Promise<T[]> {
    checkInputs(inputs, this.config, this)
    const lengths = inputs.map(({ sequence }) => sequence.length)
    try {
      return await this.#run(inputs, results)
    } catch (error) {
      for (const [i, { sequence }] of inputs.entries()) sequence.truncate(Math.min(sequence.length, lengths[i]!))
      throw error
    }
  }

  async #run<T>(inputs: readonly StepInput[], results: Results<T>): Promise<T[]> {
    const { config, backend } = this
    for (const { sequence, tokens } of inputs) {
      const copy = sequence.appendTokens(tokens)
      if (copy) for (const cache of this.#caches) backend.copyBlock(cache, copy.from, copy.to, copy.slots)
    }
    const plan = planStep(inputs)
    this.#batch.update(plan)
    const step = this.#workspace.step(plan.ids.length)
    backend.write(step.ids, plan.ids)
    backend.write(step.positions, plan.positions)
    backend.write(step.slots, plan.slots)
    backend.embed(step.x, this.weights.embed, step.ids)
    this.weights.layers.forEach((layer, l) => {
      backend.rmsNorm(step.normed, step.x, layer.inputNorm, config.rmsNormEps)
      this.#attend(step, layer, this.#caches[l]!)
      backend.rmsNorm(step.normed, step.x, layer.postNorm, config.rmsNormEps)
      this.#feedForward(step, layer)
    })
    return results(step.x, plan)
  }

  /** Frees the weights, caches and work memory. */
  dispose(): void {
    for (const resource of this.#owned) resource.dispose()
    disposeWeights(this.weights)
  }

  /** x += attention(normed), and the rows' latents go to the cache. */
  #attend(step: StepTensors, layer: LayerWeights, cache: PagedCache): void {
    const { backend } = this
    const { qkNopeHeadDim: nope, rmsNormEps, rope } = this.config
    const { normed, positions, q, kv, heads } = step
    const rotation = { table: this.#rope, positions, interleaved: rope.interleaved }
    const query = layer.qA ? { out: step.queryDown!, weight: layer.qA.weight } : { out: q, weight: layer.qB }
    fused.linears(backend, normed, [query, { out: kv, weight: layer.kvA }])
    if (layer.qA) {
      backend.rmsNorm(step.queryNormed!, step.queryDown!, layer.qA.norm, rmsNormEps)
      backend.linear(q, step.queryNormed!, layer.qB)
    }
    const norm = { weight: layer.kvNorm, eps: rmsNormEps }
    fused.appendLatents(backend, cache, kv, norm, rotation, step.slots, step.compressed)

    const scale = softmaxScale(this.config)
    if (layer.projection.form === 'naive') {
      backend.rotary(q, nope, this.#rope, positions, rope.interleaved)
      backend.naiveAttention(heads, q, layer.projection.kvB, cache, this.#batch, scale)
    } else {
      const { absorbed, latentOut, lse } = step
      fused.absorbQueries(backend, absorbed, q, layer.projection.uk, rotation, step)
      backend.attention(latentOut, lse, absorbed, cache, this.#batch, scale)
      backend.headLinear(heads, latentOut, layer.projection.uv)
    }
    fused.addLinear(backend, step.x, heads, layer.o, step.added)
  }

  /** x += experts(normed) + dense or shared feed-forward(normed). What writes x comes last: the rest can overlap. */
  #feedForward(step: StepTensors, layer: LayerWeights): void {
    const { backend } = this
    const inner: FeedForwardTensors | undefined = layer.dense && (layer.moe ? step.shared! : step.dense)
    const products: fused.Product[] = []
    if (layer.moe) products.push({ out: step.router!.logits, weight: layer.moe.gate })
    if (layer.dense && inner)
      products.push({ out: inner.gate, weight: layer.dense.gate, up: layer.dense.up, other: inner.up })
    fused.linears(backend, step.normed, products)
    if (layer.moe) {
      const { logits, ids, weights } = step.router!
      backend.route(ids, weights, logits, layer.moe.bias, this.config.moe!.router)
      backend.experts(step.x, step.normed, ids, weights, layer.moe.experts)
    }
    if (layer.dense && inner) fused.addLinear(backend, step.x, inner.gate, layer.dense.down, step.added)
  }
}

/** What a step gives of the rows of x that it is asked for. */
type Results<T> = (x: Tensor<'f32'>, plan: StepPlan) => Promise<T[]>

/** Each input's share of the rows of all. */
function sliced<T>(inputs: readonly StepInput[], slice: (first: number, last: number) => T): T[] {
  let row = 0
  return inputs.map((input) => {
    const first = row
    row += rowsOf(input)
    return slice(first, row)
  })
}
