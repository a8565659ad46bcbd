import { DisposedError } from '@flashmla/spec'
import { CudaError } from '../errors'
import type { Driver, LiveResource } from './driver'

/** Something the driver holds for us until it is disposed of, once. Works with `using`. */
export abstract class Resource implements LiveResource {
  readonly what: string
  readonly madeAt: string | undefined
  readonly #holders: Set<LiveResource>[]
  #watchers: Set<() => void> | undefined
  #disposed = false

  /** `what` names it in errors and in the leak report. */
  constructor(driver: Driver, what: string, holders: Set<LiveResource>[] = []) {
    this.what = what
    this.madeAt = driver.debug ? new Error().stack?.split('\n').slice(3).join('\n') : undefined
    this.#holders = [driver.live, ...holders]
  }

  /** To be called by the constructor once the driver really holds something. */
  protected hold(): void {
    for (const holder of this.#holders) holder.add(this)
  }

  get disposed(): boolean {
    return this.#disposed
  }

  /** @internal Calls `then` when this is disposed of. The returned function takes that back. */
  watch(then: () => void): () => void {
    this.#watchers ??= new Set()
    this.#watchers.add(then)
    return () => this.#watchers?.delete(then)
  }

  /** @throws DisposedError */
  protected alive(): void {
    if (this.#disposed) throw new DisposedError(this.what)
  }

  /**
   * Gives it back to the driver. What a lost context held is gone already: then only the first error of it is thrown, so that
   * `using` unwinds. @throws DisposedError the second time.
   */
  [Symbol.dispose](): void {
    this.alive()
    try {
      this.release()
    } catch (error) {
      if (!(error instanceof CudaError && error.contextLost)) throw error
      this.#drop()
      throw error
    }
    this.#drop()
  }

  #drop(): void {
    this.#disposed = true
    for (const holder of this.#holders) holder.delete(this)
    for (const then of this.#watchers ?? []) then()
  }

  protected abstract release(): void
}
