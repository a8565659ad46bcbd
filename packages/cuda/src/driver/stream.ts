import { setImmediate } from 'node:timers/promises'
import type { Context } from './context'
import { bytesOf } from './driver'
import { Resource } from './resource'

const NON_BLOCKING = 1
const NOT_READY = 600
const DISABLE_TIMING = 2

/** Polls until a query says that the work is done, leaving the event loop free in between. */
async function until(done: () => boolean): Promise<void> {
  while (!done()) await setImmediate()
}

function query(context: Context, name: 'cuStreamQuery' | 'cuEventQuery', handle: bigint): boolean {
  const status = context.driver.api.call(name, handle)
  if (status !== 0 && status !== NOT_READY) context.driver.fail(status, name, [handle])
  return status === 0
}

/** A queue of device work, run in order; independent of the default stream. */
export class Stream extends Resource {
  readonly context: Context
  readonly #handle: bigint

  constructor(context: Context) {
    super(context.driver, `A stream of device ${context.device.ordinal}`, [context.held])
    this.context = context
    this.#handle = context.create('cuStreamCreate', NON_BLOCKING)
    this.hold()
  }

  /** CUstream. @throws DisposedError */
  get handle(): bigint {
    this.alive()
    return this.#handle
  }

  /** Blocks until all queued work is done. */
  synchronize(): void {
    this.context.call('cuStreamSynchronize', this.handle)
  }

  /** Resolves when all queued work is done, without blocking the event loop. @throws CudaError of failed work */
  finished(): Promise<void> {
    return until(() => query(this.context, 'cuStreamQuery', this.handle))
  }

  /** What is queued from now on starts after the event. */
  wait(event: Event): void {
    this.context.call('cuStreamWaitEvent', this.handle, event.handle, 0)
  }

  /** Waits for queued work first, so that nothing still uses what is freed next. */
  protected release(): void {
    this.context.call('cuStreamSynchronize', this.#handle)
    this.context.call('cuStreamDestroy_v2', this.#handle)
  }
}

/** A mark in a stream's work. */
export class Event extends Resource {
  readonly context: Context
  readonly timing: boolean
  readonly #handle: bigint

  constructor(context: Context, options: { timing?: boolean } = {}) {
    super(context.driver, `An event of device ${context.device.ordinal}`, [context.held])
    this.context = context
    this.timing = options.timing ?? false
    this.#handle = context.create('cuEventCreate', this.timing ? 0 : DISABLE_TIMING)
    this.hold()
  }

  /** CUevent. @throws DisposedError */
  get handle(): bigint {
    this.alive()
    return this.#handle
  }

  /** Marks the end of what the stream holds now. */
  record(stream: Stream): void {
    this.context.call('cuEventRecord', this.handle, stream.handle)
  }

  synchronize(): void {
    this.context.call('cuEventSynchronize', this.handle)
  }

  /** Resolves once the work before the mark is done. */
  finished(): Promise<void> {
    return until(() => query(this.context, 'cuEventQuery', this.handle))
  }

  /** Milliseconds of device time since an earlier event; both made with `timing: true` and finished. */
  since(earlier: Event): number {
    const out = new Float32Array(1)
    this.context.call('cuEventElapsedTime', bytesOf(out), earlier.handle, this.handle)
    return out[0]!
  }

  protected release(): void {
    this.context.call('cuEventDestroy_v2', this.#handle)
  }
}
