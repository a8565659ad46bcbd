import { DisposedError, UnsupportedError } from '@flashmla/spec'
import type { Context } from './context'
import { Resource } from './resource'
import type { Stream } from './stream'

/** Only calls of this thread are kept from what capture forbids. */
const CAPTURE_THREAD_LOCAL = 1
const GRAPH_EXEC_UPDATE_FAILURE = 910

/** A CUgraph, the names of its kernels, and the memory and modules that were used while it was captured. */
interface Captured {
  readonly graph: bigint
  readonly kernels: readonly string[]
  readonly used: ReadonlySet<Resource>
}

/** Records what `work` queues on the stream, without running it, and hands it to `use`. */
function captured<T>(stream: Stream, work: () => void, use: (captured: Captured) => T): T {
  const { context } = stream
  context.call('cuStreamBeginCapture_v2', stream.handle, CAPTURE_THREAD_LOCAL)
  const kernels: string[] = []
  const used = new Set<Resource>()
  stream.recording = kernels
  context.captured = used
  try {
    work()
  } catch (error) {
    endQuietly(context, stream)
    throw error
  } finally {
    stream.recording = undefined
    context.captured = undefined
  }
  const out = new BigUint64Array(1)
  context.call('cuStreamEndCapture', stream.handle, new Uint8Array(out.buffer))
  const graph = out[0]!
  try {
    return use({ graph, kernels, used })
  } finally {
    context.call('cuGraphDestroy', graph)
  }
}

// The error of `work` is the one to report; ending the capture fails too when that invalidated it.
function endQuietly(context: Context, stream: Stream): void {
  const out = new BigUint64Array(1)
  const status = context.attempt('cuStreamEndCapture', stream.handle, new Uint8Array(out.buffer))
  if (status === 0 && out[0] !== 0n) context.call('cuGraphDestroy', out[0]!)
}

/**
 * Work captured once and replayed with one call. Kernels read what their buffers hold at replay; addresses, grids and
 * parameter values are those of the capture until `update`. Memory that the work names has to outlive the last replay.
 */
export class Graph extends Resource {
  readonly context: Context
  readonly #exec: bigint
  readonly #watches: boolean
  #note = ''
  #unwatch: (() => void)[] = []
  /** What the graph uses and is gone. */
  #gone: string | undefined

  /**
   * Captures what `work` queues on `stream`. `watch` false: whoever replays it knows what lies at its addresses.
   * @throws what `work` throws, CudaError
   */
  constructor(stream: Stream, work: () => void, { watch = true }: { readonly watch?: boolean } = {}) {
    const { context } = stream
    super(context.driver, `A graph of device ${context.device.ordinal}`, [context.held])
    this.context = context
    this.#watches = watch
    this.#exec = captured(stream, work, ({ graph, kernels, used }) => {
      this.#note = noteOf(kernels)
      const exec = context.create('cuGraphInstantiateWithFlags', graph, 0)
      this.#watch(used)
      return exec
    })
    this.hold()
  }

  /**
   * Queues the whole graph.
   * @throws DisposedError also when memory or a module that the captured work used is gone, InvalidArgumentError for a stream of another
   * context, CudaError
   */
  replay(stream: Stream): void {
    this.alive()
    if (this.#gone !== undefined) throw new DisposedError(`${this.#gone}, which a captured graph uses,`)
    this.context.demand(stream, 'The stream')
    this.context.call('cuGraphLaunch', this.#exec, stream.handle)
    stream.note(this.#note)
  }

  /**
   * Captures `work` again and takes over its parameter values and grids; the kernels and their order must be the same.
   * @throws UnsupportedError when they are not: the graph is unchanged then, and a new one must be captured.
   */
  update(stream: Stream, work: () => void): void {
    this.alive()
    this.context.demand(stream, 'The stream')
    captured(stream, work, ({ graph, kernels, used }) => {
      const result = new Uint8Array(24) // CUgraphExecUpdateResultInfo
      const status = this.context.attempt('cuGraphExecUpdate_v2', this.#exec, graph, result)
      if (status === GRAPH_EXEC_UPDATE_FAILURE) {
        throw new UnsupportedError(
          `The captured work differs from the graph's (CUgraphExecUpdateResult ${result[0]}).`,
          'Make a new graph: only parameters and grids of the same kernels can be updated.',
        )
      }
      if (status !== 0) this.context.fail(status, 'cuGraphExecUpdate_v2', noteOf(kernels))
      this.#watch(used)
    })
  }

  #watch(used: ReadonlySet<Resource>): void {
    for (const unwatch of this.#unwatch) unwatch()
    this.#gone = undefined
    this.#unwatch = []
    if (!this.#watches) return
    for (const resource of used) {
      const gone = () => {
        this.#gone ??= resource.what
      }
      if (resource.disposed) gone()
      else this.#unwatch.push(resource.watch(gone))
    }
  }

  protected release(): void {
    this.context.giveBack('cuGraphExecDestroy', this.#exec)
    for (const unwatch of this.#unwatch) unwatch()
  }
}

/** Kernels of a graph named in errors. */
const NAMED = 4

function noteOf(kernels: readonly string[]): string {
  const names = [...new Set(kernels)]
  return `a graph of ${names.slice(0, NAMED).join(', ') || 'no kernels'}${names.length > NAMED ? ' and others' : ''}`
}
