import { DisposedError, InvalidArgumentError } from '@flashmla/spec'
import type { Context } from '../driver/context'
import { Launch, type LaunchOptions } from '../driver/launch'
import { DeviceMemory } from '../driver/memory'
import { Stream } from '../driver/stream'
import { KernelLibrary } from '../kernels/library'
import type { Fields, Struct, Values } from '../kernels/struct'
import { type Key, LaunchQueue, type Operation } from './launch-queue'

/** `plan`: operations check and reserve, and launch nothing; `capture`: what they launch is recorded. */
export type Mode = 'run' | 'plan' | 'capture'

interface LaidOut extends Operation {
  readonly view: DataView
}

/** What all parts of the backend share: one stream, launches laid out once, memory, and what is to be freed in the end. */
export class BackendDevice {
  readonly stream: Stream
  readonly library: KernelLibrary
  /** For what is known at a capture but may change before a replay. */
  mode: Mode = 'run'
  /** What the captured step that is being recorded calls when it is disposed of. */
  capturing: (() => void)[] = []
  readonly #operations = new Map<string, LaidOut>()
  readonly #owned = new Set<Disposable>()
  readonly #workspaces = new Map<string, { memory: DeviceMemory; captured: boolean }>()
  readonly #queue: LaunchQueue
  #disposed = false

  /** Owns the context from now on. `graphs`: see `LaunchQueue`. @throws UnsupportedError when the device has no kernels */
  constructor(
    readonly context: Context,
    graphs: boolean,
  ) {
    this.library = new KernelLibrary(context)
    try {
      this.stream = new Stream(context)
    } catch (error) {
      this.library[Symbol.dispose]()
      throw error
    }
    this.#queue = new LaunchQueue(this.stream, graphs)
  }

  get disposed(): boolean {
    return this.#disposed
  }

  /** @throws DisposedError */
  alive(): void {
    if (this.#disposed) throw new DisposedError('The CUDA backend')
  }

  /** Before anything but launches: what is held back is queued. @throws DisposedError, InvalidArgumentError in a capture */
  eager(what: string): void {
    this.alive()
    if (this.mode === 'run') {
      this.#queue.flush()
      return
    }
    throw new InvalidArgumentError(
      `${what} can't be part of a captured step.`,
      'Do it before the capture, or between replays.',
    )
  }

  /**
   * Device memory that is freed with the backend, or by `free`.
   * @throws CudaError when there is too little, InvalidArgumentError in a recording: what it made would live in the graph only
   */
  allocate(bytes: number): DeviceMemory {
    this.alive()
    this.mayAllocate()
    return this.own(new DeviceMemory(this.stream, Math.max(bytes, 1)))
  }

  /** @throws InvalidArgumentError in a recording */
  mayAllocate(): void {
    if (this.mode === 'capture')
      throw new InvalidArgumentError(
        'A captured step needs memory that its first pass did not.',
        'Queue the same operations on the same operands both times that `record` is called.',
      )
  }

  own<T extends Disposable>(resource: T): T {
    this.#owned.add(resource)
    return resource
  }

  /**
   * Disposes of what `own` took, in the order of the stream; nothing when that was done already.
   * @throws InvalidArgumentError in a capture: `record` is called twice, and a replay would use what is gone
   */
  free(resource: Disposable): void {
    if (!this.#owned.has(resource)) return
    this.eager('Disposing of something')
    this.#release(resource)
  }

  #release(resource: Disposable): void {
    this.#queue.flush()
    this.#owned.delete(resource)
    resource[Symbol.dispose]()
  }

  /**
   * Work memory by name, for one operation at a time, grown as needed. What a captured step uses is kept as long as the backend.
   * @throws CudaError when there is too little
   */
  workspace(name: string, bytes: number): DeviceMemory {
    let found = this.#workspaces.get(name)
    if (!found || found.memory.bytes < bytes) {
      const memory = this.allocate(bytes)
      if (found && !found.captured) this.#release(found.memory)
      found = { memory, captured: false }
      this.#workspaces.set(name, found)
    }
    if (this.mode === 'capture') found.captured = true
    return found.memory
  }

  /**
   * Queues a kernel with new parameter values; its launch is laid out on first use. A grid without blocks queues nothing.
   * `cluster`: blocks of a cluster along x.
   */
  run<F extends Fields>(
    symbol: string,
    struct: Struct<F>,
    grid: LaunchOptions['grid'],
    values: Values<F>,
    { sharedBytes, cluster = 1 }: { readonly sharedBytes?: number; readonly cluster?: number } = {},
  ): void {
    const key = cluster === 1 ? symbol : `${symbol} ${cluster}`
    let operation = this.#operations.get(key)
    if (!operation || (sharedBytes !== undefined && operation.sharedBytes < sharedBytes)) {
      const kernel = this.library.kernel(symbol, sharedBytes)
      const parameters = new Uint8Array(new ArrayBuffer(struct.bytes))
      const { threads } = this.library.entry(symbol)
      const launch = new Launch({ kernel, grid: [cluster, 1], threads, cluster, parameters: [parameters] })
      operation = { launch, parameters, view: new DataView(parameters.buffer), sharedBytes: kernel.sharedBytes }
      this.#operations.set(key, operation)
    }
    if (this.mode === 'plan' || grid[0] === 0 || grid[1] === 0) return
    struct.fill(operation.view, values)
    if (this.mode === 'run') {
      this.#queue.launch(operation, grid)
      return
    }
    operation.launch.setGrid(grid)
    operation.launch.on(this.stream)
  }

  /** Queues launches of another kind, the same whenever `key` is: `enqueue` may run later, and within a capture. */
  runKeyed(key: Key, enqueue: () => void): void {
    if (this.mode === 'run') this.#queue.enqueue(key, enqueue)
    else if (this.mode === 'capture') enqueue()
  }

  /** Frees everything once the stream is done, the context too. @throws CudaError of work that failed, everything freed */
  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    try {
      if (!this.context.lost) {
        this.#queue.flush()
        this.stream.synchronize()
      }
    } finally {
      this.#disposeAll()
    }
  }

  #disposeAll(): void {
    this.#queue.dispose()
    for (const resource of this.#owned) resource[Symbol.dispose]()
    this.#owned.clear()
    this.stream[Symbol.dispose]()
    this.library[Symbol.dispose]()
    this.context[Symbol.dispose]()
  }
}
