import type { LlmEngine } from '@flashmla/engine'

/** A stream with something to write. */
export interface PacedStream {
  /** True until the stream has written for the first time. */
  readonly fresh: boolean
  flush(): void
}

/**
 * When the streams write what the steps gave them. A write costs as much processor time as all the rest that the server
 * does for a token, and no reader sees what changes faster than a screen: where steps are short, several steps' tokens go
 * out in one write. A token waits only for a step that should end within `everyMs` of it; never at a stream's beginning,
 * and never for a step that computes a prompt.
 */
export class WritePacer {
  readonly #held = new Set<PacedStream>()
  /** When the oldest held piece came. */
  #since = 0
  #scheduled = false
  #timer: NodeJS.Timeout | undefined
  #stepMs = Number.POSITIVE_INFINITY

  constructor(
    private readonly engine: Pick<LlmEngine, 'onStep' | 'queued'>,
    private readonly everyMs: number,
  ) {
    engine.onStep(({ prefill, milliseconds }) => {
      this.#stepMs = prefill > 0 ? Number.POSITIVE_INFINITY : milliseconds
      if (this.#held.size > 0) this.#schedule()
    })
  }

  /** The stream's `flush` is called once: at the end of this turn of the event loop, or of one soon after. */
  add(stream: PacedStream): void {
    if (this.#held.size === 0) this.#since = performance.now()
    this.#held.add(stream)
    this.#schedule()
  }

  /** The stream has nothing to write any more. */
  delete(stream: PacedStream): void {
    this.#held.delete(stream)
  }

  /** Writes all that is held: the next step may be long. */
  readonly flush = (): void => {
    clearTimeout(this.#timer)
    this.#timer = undefined
    for (const stream of this.#held) stream.flush()
    this.#held.clear()
  }

  #schedule(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    queueMicrotask(this.#turn)
  }

  readonly #turn = (): void => {
    this.#scheduled = false
    const now = performance.now()
    if (this.engine.queued > 0 || now + this.#stepMs > this.#since + this.everyMs) {
      this.flush()
      return
    }
    for (const stream of this.#held) {
      if (!stream.fresh) continue
      this.#held.delete(stream)
      stream.flush()
    }
    // For a step that takes longer than the last one did.
    if (this.#held.size > 0) this.#timer ??= setTimeout(this.flush, this.#since + this.everyMs - now)
  }
}
