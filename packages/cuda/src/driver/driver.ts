import { CudaError, CudaUnavailableError } from '../errors'
import type { DriverApi, DriverArguments, DriverFunction } from './api'
import { loadDriver } from './api'

/** Oldest driver whose functions suffice: CUDA 12.0, the first with cuLaunchKernelEx and tensor maps. */
const MINIMUM_VERSION = 12000

export interface DriverOptions {
  /** Stand-in for the native driver, in tests. */
  api?: DriverApi
  /** Remember where each resource was made, and report those left at exit. Default: the environment's FLASHMLA_DEBUG=1. */
  debug?: boolean
  /** Receives the leak report. Default: standard error. */
  report?: (text: string) => void
}

/** What the leak report says of a resource. */
export interface LiveResource {
  readonly what: string
  readonly madeAt: string | undefined
}

/**
 * The NVIDIA driver, initialized, with every status checked.
 * @throws CudaUnavailableError without a driver, with one older than CUDA 12.0, or without a device.
 */
export class Driver {
  readonly api: DriverApi
  readonly debug: boolean
  /** CUDA version that the driver supports, as 1000 · major + 10 · minor. */
  readonly version: number
  readonly deviceCount: number
  readonly live = new Set<LiveResource>()

  constructor(options: DriverOptions = {}) {
    this.api = options.api ?? loadDriver()
    this.debug = options.debug ?? process.env.FLASHMLA_DEBUG === '1'
    const init = this.api.call('cuInit', 0)
    if (init !== 0) throw notStarted(init, this.api.statusName(init))
    this.version = this.readInt('cuDriverGetVersion')
    if (this.version < MINIMUM_VERSION) {
      throw new CudaUnavailableError(
        `The NVIDIA driver supports CUDA ${versionText(this.version)}; 12.0 is needed.`,
        'Update the NVIDIA driver to 525 or later.',
      )
    }
    this.deviceCount = this.readInt('cuDeviceGetCount')
    if (this.deviceCount === 0) throw notStarted(NO_DEVICE, this.api.statusName(NO_DEVICE))
    if (this.debug) {
      const report = options.report ?? ((text: string) => process.stderr.write(`${text}\n`))
      process.once('exit', () => this.live.size > 0 && report(this.leaks()))
    }
  }

  /** Calls a driver function. @throws CudaError for any status but success. */
  call<F extends DriverFunction>(name: F, ...args: DriverArguments<F>): void {
    const status = this.api.call(name, ...args)
    if (status !== 0) this.fail(status, name, argumentsText(args))
  }

  /** @internal Throws the error of a status. `about`: the arguments that matter; `queued`: what a late error may come from. */
  fail(status: number, call: string, about: string, queued: readonly string[] = []): never {
    throw new CudaError({ status, statusName: this.api.statusName(status), call, about, queued })
  }

  /** Makes a context the calling thread's. Nothing happens when it is that already. */
  enter(context: bigint, force = false): void {
    const { current } = this.api
    if (current.context === context && !force) return
    this.call('cuCtxSetCurrent', context)
    current.context = context
  }

  /** @internal The 32-bit integer that a function with one result gives. */
  readInt(name: 'cuDriverGetVersion' | 'cuDeviceGetCount'): number {
    const out = new Int32Array(1)
    this.call(name, bytesOf(out))
    return out[0]!
  }

  /** The resources not disposed of yet, one a line, with the place that made each in debug mode. */
  leaks(): string {
    const lines = [...this.live].map(({ what, madeAt }) => `  ${what}${madeAt ? `\n${madeAt}` : ''}`)
    return `${this.live.size} CUDA resources were not disposed of:\n${lines.join('\n')}`
  }
}

/** `12.4` for 12040. */
export function versionText(version: number): string {
  return `${Math.floor(version / 1000)}.${Math.floor((version % 1000) / 10)}`
}

/** The bytes of a typed array, sharing memory. */
export function bytesOf(array: ArrayBufferView): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength)
}

const NO_DEVICE = 100
/** What to do where the driver does not start; by CUresult. */
const START_HINTS: Readonly<Record<number, string>> = {
  [NO_DEVICE]: 'Check that nvidia-smi lists a device and that CUDA_VISIBLE_DEVICES does not hide it.',
  802: 'Start the fabric manager (systemctl start nvidia-fabricmanager): this machine connects its GPUs by NVSwitch.',
  803: 'The driver was updated under a running kernel module: reload the module, or restart the machine.',
  804: 'The compatibility driver of this container does not know the GPU: use the driver of the host.',
}

function notStarted(status: number, name: string): CudaUnavailableError {
  const fact = status === NO_DEVICE ? 'found no device it can use' : 'did not start'
  return new CudaUnavailableError(
    `The NVIDIA driver ${fact}: cuInit gave ${name}.`,
    START_HINTS[status] ?? 'Check that nvidia-smi works on this machine.',
  )
}

/** @internal A call's arguments as an error shows them. */
export function argumentsText(args: readonly unknown[]): string {
  return args.map(argumentText).join(', ')
}

function argumentText(value: unknown): string {
  if (typeof value === 'bigint') return `0x${value.toString(16)}`
  if (value instanceof Uint8Array) return `${value.byteLength} bytes`
  return typeof value === 'string' ? `'${value}'` : String(value)
}
