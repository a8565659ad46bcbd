import { InvalidArgumentError } from '@flashmla/spec'
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
/** Larger clusters have to be allowed, and not every device takes them. */
const PORTABLE_CLUSTER = 8
// CUfunction_attribute
const NON_PORTABLE_CLUSTER_SIZE_ALLOWED = 14

/** A kernel launch laid out once in native memory, so that launching is one native call. */
export class Launch {
  readonly #kernel: Kernel
  readonly #parameters: readonly Uint8Array[]
  readonly #config = new Uint8Array(new ArrayBuffer(CONFIG_BYTES))
  readonly #attributes = new Uint8Array(new ArrayBuffer(2 * ATTRIBUTE_BYTES))
  readonly #pointers: Uint8Array
  readonly #view: DataView
  readonly #cluster: number

  /** @throws InvalidArgumentError for a grid, block or cluster that can't be, CudaError */
  constructor(options: LaunchOptions) {
    const { kernel, grid, threads, cluster = 1, programmatic = false, parameters } = options
    const { context } = kernel.module
    const { api } = context.driver
    check('threads', threads, 1024)
    check('cluster', cluster, 16)
    if (cluster > PORTABLE_CLUSTER) {
      context.call('cuFuncSetAttribute', kernel.handle, NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)
    }
    this.#kernel = kernel
    this.#cluster = cluster
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

  /** Blocks along x, y and z from the next launch on. @throws InvalidArgumentError */
  setGrid([x, y, z = 1]: LaunchOptions['grid']): void {
    check('grid x', x, 2 ** 31 - 1)
    check('grid y', y, 65535)
    check('grid z', z, 65535)
    if (x % this.#cluster !== 0)
      throw new InvalidArgumentError(
        `A grid of ${x} blocks along x has no whole clusters of ${this.#cluster}.`,
        'Give a multiple of the cluster.',
      )
    this.#view.setUint32(0, x, true)
    this.#view.setUint32(4, y, true)
    this.#view.setUint32(8, z, true)
  }

  /**
   * Queues the kernel. The driver copies the parameters before this returns.
   * @throws InvalidArgumentError for a stream of another context, CudaError, DisposedError
   */
  on(stream: Stream): void {
    const kernel = this.#kernel
    const { context } = kernel.module
    context.captured?.add(kernel.module)
    if (stream.context !== context) context.demand(stream, `The stream that ${kernel.symbol} is to run on`)
    this.#view.setBigUint64(STREAM_OFFSET, stream.handle, true)
    const status = context.attempt('cuLaunchKernelEx', this.#config, kernel.handle, this.#pointers, null)
    if (status !== 0) context.fail(status, 'cuLaunchKernelEx', this.#about())
    stream.note(kernel.symbol)
  }

  #about(): string {
    const word = (at: number) => this.#view.getUint32(at, true)
    const grid = `grid ${word(0)} × ${word(4)} × ${word(8)}`
    const cluster = this.#cluster > 1 ? `, clusters of ${this.#cluster}` : ''
    return `${this.#kernel.symbol}, ${grid}, ${word(12)} threads${cluster}, ${word(24)} bytes of shared memory`
  }
}

function check(name: string, value: number, most: number): void {
  if (Number.isInteger(value) && value >= 1 && value <= most) return
  throw new InvalidArgumentError(`A launch's ${name} is ${value}.`, `Give a whole number from 1 to ${most}.`)
}
