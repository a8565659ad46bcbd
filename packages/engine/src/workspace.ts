import type { MlaConfig } from '@flashmla/latent'
import type { Backend, Tensor } from '@flashmla/spec'
import { DRAW_COLUMNS } from '@flashmla/spec'

type F32 = Tensor<'f32'>
type I32 = Tensor<'i32'>

/** Gate, up and down projections of one feed-forward width. */
export interface FeedForwardTensors {
  /** `[n, inner]` */
  readonly gate: F32
  /** `[n, inner]` */
  readonly up: F32
}

/** The tensors of a pass over n rows: views into memory that the workspace owns. */
export interface StepTensors {
  /** `[n]` each */
  readonly ids: I32
  readonly positions: I32
  readonly slots: I32
  /** `[n, hidden]` each: the residual stream, its norm, and what a block adds to it. */
  readonly x: F32
  readonly normed: F32
  readonly added: F32
  /** `[n, qLoraRank]` each; absent without query compression. */
  readonly queryDown?: F32
  readonly queryNormed?: F32
  /** `[n, h, nope + rope]` */
  readonly q: F32
  /** `[n, kvLoraRank + rope]` */
  readonly kv: F32
  /** `[n, kvLoraRank]` */
  readonly compressed: F32
  /** `[n, h, nope]` */
  readonly qNope: F32
  /** `[n, h, kvLoraRank]` each */
  readonly qLatent: F32
  readonly latentOut: F32
  /** `[n, h, kvLoraRank + rope]` */
  readonly absorbed: F32
  /** `[n, h]` */
  readonly lse: F32
  /** `[n, h, v]` */
  readonly heads: F32
  /** Of the dense layers, and of the shared experts. */
  readonly dense: FeedForwardTensors
  readonly shared?: FeedForwardTensors
  readonly router?: {
    /** `[n, experts]` */
    readonly logits: F32
    /** `[n, topK]` each */
    readonly ids: I32
    readonly weights: F32
  }
}

/** Rows of logits that are computed and read back at a time. */
export interface LogitTensors {
  /** `[rows]` */
  readonly rows: I32
  /** `[rows, hidden]` */
  readonly x: F32
  /** `[rows, vocab]` */
  readonly logits: F32
  /** `[rows, 6]` and `[rows]`: how tokens are drawn, and which were; see `Backend.sample`. */
  readonly draws: F32
  readonly tokens: I32
}

/**
 * Work memory of a model, sized once for its largest step: a step allocates nothing on the backend. The views of a
 * decode step (as many rows as sequences) are kept, those of a prefill chunk are made anew.
 */
export class Workspace {
  readonly #owned: Tensor[] = []
  readonly #whole: StepTensors
  readonly #logits: LogitTensors
  readonly #steps = new Map<number, StepTensors>()
  readonly #logitViews = new Map<number, LogitTensors>()

  constructor(
    private readonly backend: Backend,
    private readonly config: MlaConfig,
    maxTokens: number,
    /** Most rows of one LogitTensors. */
    readonly maxLogitRows: number,
    private readonly maxKept: number,
  ) {
    const f32 = (...shape: number[]) => this.#own(backend.tensor('f32', shape))
    const i32 = (...shape: number[]) => this.#own(backend.tensor('i32', shape))
    try {
      this.#whole = layout(config, maxTokens, f32, i32)
      this.#logits = {
        rows: i32(maxLogitRows),
        x: f32(maxLogitRows, config.hiddenSize),
        logits: f32(maxLogitRows, config.vocabSize),
        draws: f32(maxLogitRows, DRAW_COLUMNS),
        tokens: i32(maxLogitRows),
      }
    } catch (error) {
      this.dispose()
      throw error
    }
  }

  /** The tensors of a pass over `n` rows. */
  step(n: number): StepTensors {
    const kept = this.#steps.get(n)
    if (kept) return kept
    const whole = leaves(this.#whole)
    let next = 0
    const view = <T extends F32 | I32>(shape: number[]) => this.backend.view(whole[next++] as T, shape) as T
    const step = layout(
      this.config,
      n,
      (...shape) => view<F32>(shape),
      (...shape) => view<I32>(shape),
    )
    if (n <= this.maxKept) this.#steps.set(n, step)
    return step
  }

  /** The tensors of `rows` ≤ maxLogitRows rows of logits. */
  logits(rows: number): LogitTensors {
    let view = this.#logitViews.get(rows)
    if (!view) {
      const { hiddenSize, vocabSize } = this.config
      view = {
        rows: this.backend.view(this.#logits.rows, [rows]),
        x: this.backend.view(this.#logits.x, [rows, hiddenSize]),
        logits: this.backend.view(this.#logits.logits, [rows, vocabSize]),
        draws: this.backend.view(this.#logits.draws, [rows, DRAW_COLUMNS]),
        tokens: this.backend.view(this.#logits.tokens, [rows]),
      }
      this.#logitViews.set(rows, view)
    }
    return view
  }

  dispose(): void {
    for (const tensor of this.#owned) tensor.dispose()
  }

  #own<T extends Tensor>(tensor: T): T {
    this.#owned.push(tensor)
    return tensor
  }
}

/** Makes the tensors of `n` rows in one fixed order, which `leaves` repeats. */
function layout(
  config: MlaConfig,
  n: number,
  f32: (...shape: number[]) => F32,
  i32: (...shape: number[]) => I32,
): StepTensors {
  const { hiddenSize: d, numHeads: h, kvLoraRank: r, qkNopeHeadDim: nope, qkRopeHeadDim: rope, vHeadDim: v } = config
  const { moe, qLoraRank } = config
  const feedForward = (inner: number): FeedForwardTensors => ({ gate: f32(n, inner), up: f32(n, inner) })
  return {
    ids: i32(n),
    positions: i32(n),
    slots: i32(n),
    x: f32(n, d),
    normed: f32(n, d),
    added: f32(n, d),
    ...(qLoraRank ? { queryDown: f32(n, qLoraRank), queryNormed: f32(n, qLoraRank) } : {}),
    q: f32(n, h, nope + rope),
    kv: f32(n, r + rope),
    compressed: f32(n, r),
    qNope: f32(n, h, nope),
    qLatent: f32(n, h, r),
    latentOut: f32(n, h, r),
    absorbed: f32(n, h, r + rope),
    lse: f32(n, h),
    heads: f32(n, h, v),
    dense: feedForward(config.intermediateSize),
    ...(moe?.numSharedExperts ? { shared: feedForward(moe.intermediateSize * moe.numSharedExperts) } : {}),
    ...(moe
      ? {
          router: {
            logits: f32(n, moe.numExperts),
            ids: i32(n, moe.router.topK),
            weights: f32(n, moe.router.topK),
          },
        }
      : {}),
  }
}

/** The tensors of a layout in the order in which it was made. */
function leaves(step: StepTensors): Tensor[] {
  const isTensor = (value: object): value is Tensor => 'dtype' in value
  return Object.values(step).flatMap((value: Tensor | object) =>
    isTensor(value) ? [value] : (Object.values(value) as Tensor[]),
  )
}
