import { DisposedError } from '@flashmla/spec'
import type { Context } from './context'
import { bytesOf } from './driver'
import { Resource } from './resource'

// CUfunction_attribute
const SHARED_SIZE_BYTES = 1
const NUM_REGS = 4
const MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
/** What every block may use without asking. */
const DEFAULT_SHARED_BYTES = 48 * 1024

/** Compiled device code loaded into a context: a cubin, or PTX that the driver compiles. */
export class Module extends Resource {
  readonly context: Context
  readonly name: string
  readonly #handle: bigint

  /** `name` is for errors. @throws CudaError, NO_BINARY_FOR_GPU for another architecture's cubin */
  constructor(context: Context, name: string, image: Uint8Array) {
    super(context.driver, `Module ${name} on device ${context.device.ordinal}`, [context.held])
    this.context = context
    this.name = name
    const terminated = new Uint8Array(image.length + 1) // PTX is text, which must end in a zero
    terminated.set(image)
    const out = new BigUint64Array(1)
    const status = context.attempt('cuModuleLoadData', bytesOf(out), terminated)
    if (status !== 0) context.fail(status, 'cuModuleLoadData', `${name}, ${image.length} bytes`)
    this.#handle = out[0]!
    this.hold()
  }

  /** A kernel of the module, ready for `sharedBytes` of dynamic shared memory. */
  kernel(symbol: string, sharedBytes = 0): Kernel {
    this.alive()
    const handle = this.context.create('cuModuleGetFunction', this.#handle, symbol)
    if (sharedBytes > DEFAULT_SHARED_BYTES) {
      const status = this.context.attempt('cuFuncSetAttribute', handle, MAX_DYNAMIC_SHARED_SIZE_BYTES, sharedBytes)
      if (status !== 0)
        this.context.fail(status, 'cuFuncSetAttribute', `${symbol}, ${sharedBytes} bytes of shared memory`)
    }
    return new Kernel(this, symbol, handle, sharedBytes)
  }

  protected release(): void {
    this.context.giveBack('cuModuleUnload', this.#handle)
  }
}

/** A function of a module. Lives as long as the module. */
export class Kernel {
  readonly module: Module
  readonly symbol: string
  readonly sharedBytes: number
  readonly #handle: bigint

  /** @internal Made by `Module.kernel`. */
  constructor(module: Module, symbol: string, handle: bigint, sharedBytes: number) {
    this.module = module
    this.symbol = symbol
    this.#handle = handle
    this.sharedBytes = sharedBytes
  }

  /** CUfunction. @throws DisposedError once its module is disposed of */
  get handle(): bigint {
    if (this.module.disposed) throw new DisposedError(this.module.what)
    return this.#handle
  }

  /** Registers a thread, and bytes of static shared memory, as compiled. */
  attributes(): { registers: number; staticSharedBytes: number } {
    const { handle } = this
    const read = (id: number) => {
      const out = new Int32Array(1)
      this.module.context.call('cuFuncGetAttribute', bytesOf(out), id, handle)
      return out[0]!
    }
    return { registers: read(NUM_REGS), staticSharedBytes: read(SHARED_SIZE_BYTES) }
  }
}
