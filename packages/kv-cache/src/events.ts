/** What happens to stored content. `hash` chains the block's tokens to all before it and to the salt. */
export type CacheEvent =
  | {
      readonly type: 'stored'
      readonly block: number
      readonly hash: number
      /** Hash of the block before; undefined for the first of a chain. */
      readonly parentHash: number | undefined
      readonly tokens: Int32Array
    }
  | { readonly type: 'removed'; readonly block: number; readonly hash: number }
  | { readonly type: 'cleared' }

/** An iterator fell behind, and this many events were dropped: read the cache's state anew. */
export interface LostEvents {
  readonly type: 'lost'
  readonly events: number
}

export type CacheListener = (event: CacheEvent) => void

/** How the cache's parts report what happened: `watched` is false when building an event would be for nobody. */
export interface EventSink {
  readonly watched: boolean
  emit(event: CacheEvent): void
}

/**
 * Delivers events in order, in a microtask after the call that caused them: a listener may use the cache, and one that
 * throws can't leave a mutation half done (its error goes to the process as an uncaught one).
 */
export class EventHub implements EventSink {
  /** Each with the number of the first event that it gets. */
  readonly #listeners = new Map<CacheListener, number>()
  #queue: CacheEvent[] = []
  /** Number of the next event. */
  #next = 0

  get watched(): boolean {
    return this.#listeners.size > 0
  }

  emit(event: CacheEvent): void {
    if (!this.watched) return
    this.#next++
    if (this.#queue.push(event) === 1) queueMicrotask(() => this.#deliver())
  }

  /** Adds a listener of the events from now on; the returned function takes it away. */
  listen(listener: CacheListener): () => void {
    const own: CacheListener = (event) => listener(event)
    this.#listeners.set(own, this.#next)
    return () => {
      this.#listeners.delete(own)
    }
  }

  /**
   * Events from now on. Ends when the consumer breaks off or `signal` aborts. Keeps at most `limit` unread events; when
   * more happen, they are dropped and a `lost` event tells how many.
   */
  iterate(options: { signal?: AbortSignal; limit?: number } = {}): AsyncIterableIterator<CacheEvent | LostEvents> {
    return new EventIterator(this, options.limit ?? 65536, options.signal)
  }

  #deliver(): void {
    const queue = this.#queue
    this.#queue = []
    const first = this.#next - queue.length
    queue.forEach((event, i) => {
      // A listener may take another away, or add one.
      for (const [listener, since] of this.#listeners) if (first + i >= since) call(listener, event)
    })
  }
}

function call(listener: CacheListener, event: CacheEvent): void {
  try {
    listener(event)
  } catch (error) {
    queueMicrotask(() => {
      throw error
    })
  }
}

type Result = IteratorResult<CacheEvent | LostEvents, undefined>

class EventIterator implements AsyncIterableIterator<CacheEvent | LostEvents> {
  readonly #limit: number
  readonly #stop: () => void
  #unread: CacheEvent[] = []
  #waiting: ((result: Result) => void)[] = []
  #lost = 0
  #done = false

  constructor(hub: EventHub, limit: number, signal: AbortSignal | undefined) {
    this.#limit = limit
    const unlisten = hub.listen((event) => this.#push(event))
    const abort = () => void this.return()
    this.#stop = () => {
      unlisten()
      signal?.removeEventListener('abort', abort)
    }
    if (signal?.aborted) abort()
    else signal?.addEventListener('abort', abort, { once: true })
  }

  [Symbol.asyncIterator](): this {
    return this
  }

  async next(): Promise<Result> {
    const event = this.#unread.shift()
    if (event) return { done: false, value: event }
    if (this.#lost > 0) {
      const value: LostEvents = { type: 'lost', events: this.#lost }
      this.#lost = 0
      return { done: false, value }
    }
    if (this.#done) return { done: true, value: undefined }
    return new Promise((resolve) => this.#waiting.push(resolve))
  }

  async return(): Promise<Result> {
    this.#done = true
    this.#stop()
    this.#unread = []
    this.#lost = 0
    for (const resolve of this.#waiting.splice(0)) resolve({ done: true, value: undefined })
    return { done: true, value: undefined }
  }

  #push(event: CacheEvent): void {
    const resolve = this.#waiting.shift()
    if (resolve) resolve({ done: false, value: event })
    else if (this.#lost > 0 || this.#unread.length >= this.#limit) this.#lost++
    else this.#unread.push(event)
  }
}
