import type { Kernel } from './module'
import type { Stream } from './stream'

export interface LaunchOptions {
  readonly kernel: Kernel
  /** Blocks along x, y and z (1 without it). */
  readonly grid: readonly [number, number, number?]
  /** Threads of a block. */
  readonly threads: number
  /** Blocks of a cluster. Default 1. */
  readonly cluster?: number
  /** Start while the kernel before it in the stream still runs; the kernel itself waits for it (griddepcontrol.wait). */
  readonly programmatic?: boolean
  /** Each parameter's bytes, passed by value; kept, so they may be rewritten between launches. */
  readonly parameters: readonly Uint8Array[]
}

// CUlaunchConfig: gridDim 0, blockDim 12, sharedMemBytes 24, hStream 32, attrs 40, numAttrs 48; 56 bytes.
const CONFIG_BYTES = 56
const STREAM_OFFSET = 32
// CUlaunchAttribute: id 0, value 8 to 72.
const ATTRIBUTE_BYTES = 72
const CLUSTER_DIMENSION = 4
const PROGRAMMATIC_STREAM_SERIALIZATION = 6

/** A kernel launch laid out once in native memory, so that launching is one native call. */
export class Launch {
  readonly #kernel: Kernel
  readonly #parameters: readonly Uint8Array[]
  readonly #config = new Uint8Array(new ArrayBuffer(CONFIG_BYTES))
  readonly #attributes = new Uint8Array(new ArrayBuffer(2 * ATTRIBUTE_BYTES))
  readonly #pointers: Uint8Array
  readonly #view: DataView

  constructor(options: LaunchOptions) {
    const { kernel, grid, threads, cluster = 1, programmatic = false, parameters } = options
    const { api } = kernel.module.context.driver
    this.#kernel = kernel
    this.#parameters = parameters
    this.#view = new DataView(this.#config.buffer)
    this.setGrid(grid)
    const words = [threads, 1, 1, kernel.sharedBytes]
    for (const [i, word] of words.entries()) this.#view.setUint32(12 + 4 * i, word, true)

    const attributes = new DataView(this.#attributes.buffer)
    let count = 0
    const attribute = (id: number, values: number[]) => {
      const base = count++ * ATTRIBUTE_BYTES
      attributes.setUint32(base, id, true)
      for (const [i, value] of values.entries()) attributes.setUint32(base + 8 + 4 * i, value, true)
    }
    if (cluster > 1) attribute(CLUSTER_DIMENSION, [cluster, 1, 1])
    if (programmatic) attribute(PROGRAMMATIC_STREAM_SERIALIZATION, [1])
    this.#view.setBigUint64(40, api.address(this.#attributes), true)
    this.#view.setUint32(48, count, true)

    this.#pointers = new Uint8Array(new ArrayBuffer(8 * parameters.length))
    const pointers = new DataView(this.#pointers.buffer)
    for (const [i, bytes] of this.#parameters.entries()) pointers.setBigUint64(8 * i, api.address(bytes), true)
  }

  /** Blocks along x, y and z from the next launch on. */
  setGrid([x, y, z = 1]: LaunchOptions['grid']): void {
    for (const [i, blocks] of [x, y, z].entries()) this.#view.setUint32(4 * i, blocks, true)
  }

  /** Queues the kernel. The driver copies the parameters before this returns. @throws CudaError, DisposedError */
  on(stream: Stream): void {
    this.#view.setBigUint64(STREAM_OFFSET, stream.handle, true)
    this.#kernel.module.context.call('cuLaunchKernelEx', this.#config, this.#kernel.handle, this.#pointers, null)
  }
}
