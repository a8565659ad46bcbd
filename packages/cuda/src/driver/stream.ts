import { setImmediate } from 'node:timers/promises'
import { InvalidArgumentError } from '@flashmla/spec'
import type { Context } from './context'
import { argumentsText, bytesOf } from './driver'
import { Resource } from './resource'

const NON_BLOCKING = 1
const NOT_READY = 600
const DISABLE_TIMING = 2

/** Polls until a query says that the work is done, leaving the event loop free in between. */
async function until(done: () => boolean): Promise<void> {
  while (!done()) await setImmediate()
}

function query(context: Context, name: 'cuStreamQuery' | 'cuEventQuery', handle: bigint): boolean {
  const status = context.attempt(name, handle)
  if (status !== 0 && status !== NOT_READY) context.fail(status, name, argumentsText([handle]))
  return status === 0
}

/** A queue of device work, run in order; independent of the default stream. */
export class Stream extends Resource {
  readonly context: Context
  /** @internal Kernels recorded so far, while what is queued here is captured and not run. */
  recording: string[] | undefined
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

  /** @internal Notes what was queued: errors that come late name it. */
  note(what: string): void {
    if (this.recording) this.recording.push(what)
    else this.context.trail.add(what)
  }

  /** What is queued from now on starts after the event, which may be of another device. */
  wait(event: Event): void {
    this.context.call('cuStreamWaitEvent', this.handle, event.handle, 0)
  }

  /** Waits for queued work first, so that nothing still uses what is freed next. */
  protected release(): void {
    this.context.giveBack('cuStreamSynchronize', this.#handle)
    this.context.giveBack('cuStreamDestroy_v2', this.#handle)
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

  /** Marks the end of what the stream holds now. @throws InvalidArgumentError for a stream of another context */
  record(stream: Stream): void {
    this.context.demand(stream, 'The stream')
    this.context.call('cuEventRecord', this.handle, stream.handle)
  }

  synchronize(): void {
    this.context.call('cuEventSynchronize', this.handle)
  }

  /** Resolves once the work before the mark is done. */
  finished(): Promise<void> {
    return until(() => query(this.context, 'cuEventQuery', this.handle))
  }

  /**
   * Milliseconds of device time since an earlier event of the same context; both finished.
   * @throws InvalidArgumentError unless both were made with `timing: true`
   */
  since(earlier: Event): number {
    this.context.demand(earlier, 'The earlier event')
    if (!this.timing || !earlier.timing)
      throw new InvalidArgumentError('An event without timing has no time.', 'Make both with `timing: true`.')
    const out = new Float32Array(1)
    this.context.call('cuEventElapsedTime', bytesOf(out), earlier.handle, this.handle)
    return out[0]!
  }

  protected release(): void {
    this.context.giveBack('cuEventDestroy_v2', this.#handle)
  }
}
