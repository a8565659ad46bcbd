import { UnsupportedError } from '@flashmla/spec'
import type { Context } from './context'
import { Resource } from './resource'
import type { Stream } from './stream'

/** Only calls of this thread are kept from what capture forbids. */
const CAPTURE_THREAD_LOCAL = 1
const GRAPH_EXEC_UPDATE_FAILURE = 910

/** Records what `work` queues on the stream, without running it, and hands the CUgraph and its kernels' names to `use`. */
function captured<T>(stream: Stream, work: () => void, use: (graph: bigint, kernels: readonly string[]) => T): T {
  const { context } = stream
  context.call('cuStreamBeginCapture_v2', stream.handle, CAPTURE_THREAD_LOCAL)
  const kernels: string[] = []
  stream.recording = kernels
  try {
    work()
  } catch (error) {
    endQuietly(context, stream)
    throw error
  } finally {
    stream.recording = undefined
  }
  const out = new BigUint64Array(1)
  context.call('cuStreamEndCapture', stream.handle, new Uint8Array(out.buffer))
  const graph = out[0]!
  try {
    return use(graph, kernels)
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
 * parameter values are those of the capture until `update`.
 */
export class Graph extends Resource {
  readonly context: Context
  readonly #exec: bigint
  #note = ''

  /** Captures what `work` queues on `stream`. @throws what `work` throws, CudaError */
  constructor(stream: Stream, work: () => void) {
    const { context } = stream
    super(context.driver, `A graph of device ${context.device.ordinal}`, [context.held])
    this.context = context
    this.#exec = captured(stream, work, (graph, kernels) => {
      this.#note = noteOf(kernels)
      return context.create('cuGraphInstantiateWithFlags', graph, 0)
    })
    this.hold()
  }

  /** Queues the whole graph. @throws InvalidArgumentError for a stream of another context, CudaError, DisposedError */
  replay(stream: Stream): void {
    this.alive()
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
    captured(stream, work, (graph, kernels) => {
      const result = new Uint8Array(24) // CUgraphExecUpdateResultInfo
      const status = this.context.attempt('cuGraphExecUpdate_v2', this.#exec, graph, result)
      if (status === GRAPH_EXEC_UPDATE_FAILURE) {
        throw new UnsupportedError(
          `The captured work differs from the graph's (CUgraphExecUpdateResult ${result[0]}).`,
          'Make a new graph: only parameters and grids of the same kernels can be updated.',
        )
      }
      if (status !== 0) this.context.fail(status, 'cuGraphExecUpdate_v2', noteOf(kernels))
    })
  }

  protected release(): void {
    this.context.giveBack('cuGraphExecDestroy', this.#exec)
  }
}

/** Kernels of a graph named in errors. */
const NAMED = 4

function noteOf(kernels: readonly string[]): string {
  const names = [...new Set(kernels)]
  return `a graph of ${names.slice(0, NAMED).join(', ') || 'no kernels'}${names.length > NAMED ? ' and others' : ''}`
}
