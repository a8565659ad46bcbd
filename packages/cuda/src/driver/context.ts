import { InvalidArgumentError, UnsupportedError } from '@flashmla/spec'
import { CudaError } from '../errors'
import type { DriverArguments, DriverFunction } from './api'
import { argumentsText, bytesOf, Driver, type LiveResource } from './driver'
import { Resource } from './resource'
import { Trail } from './trail'

/** What the planning of kernels needs to know of a device. */
export interface DeviceInfo {
  readonly ordinal: number
  readonly name: string
  /** Compute capability, such as [9, 0] for Hopper. */
  readonly computeCapability: readonly [number, number]
  readonly multiprocessors: number
  readonly memoryBytes: number
  /** Nominal rate of its memory: bus width times twice the memory's clock. 0 where the driver doesn't tell. */
  readonly memoryBytesPerSecond: number
  /** Largest shared memory a block can opt in to. */
  readonly sharedBytesPerBlock: number
}

// CUdevice_attribute
const MULTIPROCESSOR_COUNT = 16
const MEMORY_CLOCK_RATE = 36 // kHz
const GLOBAL_MEMORY_BUS_WIDTH = 37 // bits
const COMPUTE_CAPABILITY_MAJOR = 75
const COMPUTE_CAPABILITY_MINOR = 76
const MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97
// CUmemPool_attribute
const RELEASE_THRESHOLD = 4
const NOT_SUPPORTED = 801

function handleOf(driver: Driver, ordinal: number): number {
  const out = new Int32Array(1)
  driver.call('cuDeviceGet', bytesOf(out), ordinal)
  return out[0]!
}

/** Reads a device's properties without making a context. @throws InvalidArgumentError for an ordinal that does not exist. */
export function deviceInfo(driver: Driver, ordinal: number): DeviceInfo {
  if (!Number.isInteger(ordinal) || ordinal < 0 || ordinal >= driver.deviceCount) {
    throw new InvalidArgumentError(
      `Device ${ordinal} does not exist; there are ${driver.deviceCount}.`,
      `Use an ordinal from 0 to ${driver.deviceCount - 1}, or make more visible with CUDA_VISIBLE_DEVICES.`,
    )
  }
  const out = new Int32Array(1)
  const device = handleOf(driver, ordinal)
  const name = new Uint8Array(256)
  driver.call('cuDeviceGetName', name, name.length, device)
  const memory = new BigUint64Array(1)
  driver.call('cuDeviceTotalMem_v2', bytesOf(memory), device)
  const attribute = (id: number) => {
    driver.call('cuDeviceGetAttribute', bytesOf(out), id, device)
    return out[0]!
  }
  return {
    ordinal,
    name: new TextDecoder().decode(name.subarray(0, name.indexOf(0))),
    computeCapability: [attribute(COMPUTE_CAPABILITY_MAJOR), attribute(COMPUTE_CAPABILITY_MINOR)],
    multiprocessors: attribute(MULTIPROCESSOR_COUNT),
    memoryBytes: Number(memory[0]),
    memoryBytesPerSecond: (2 * 1000 * attribute(MEMORY_CLOCK_RATE) * attribute(GLOBAL_MEMORY_BUS_WIDTH)) / 8,
    sharedBytesPerBlock: attribute(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
  }
}

/**
 * A device's primary context, shared with other CUDA libraries of the process. Freed memory stays in the device's pool for
 * the next allocation.
 * @throws InvalidArgumentError for an ordinal that does not exist, UnsupportedError for a device without memory pools, CudaError
 */
export class Context extends Resource {
  readonly driver: Driver
  readonly device: DeviceInfo
  /** @internal What was queued last, for the errors that come late. */
  readonly trail = new Trail()
  /** @internal What is used while a graph is captured: memory whose address is read, modules of kernels. */
  captured: Set<Resource> | undefined
  readonly #cuDevice: number
  readonly #handle: bigint
  #lost = false
  readonly #held: Set<LiveResource>

  constructor(options: { device: number; driver?: Driver }) {
    const driver = options.driver ?? new Driver()
    const device = deviceInfo(driver, options.device)
    super(driver, `The context of device ${device.ordinal}`)
    this.driver = driver
    this.device = device
    this.#held = new Set()
    this.#cuDevice = handleOf(driver, device.ordinal)
    const out = new BigUint64Array(1)
    driver.call('cuDevicePrimaryCtxRetain', bytesOf(out), this.#cuDevice)
    this.#handle = out[0]!
    this.hold()
    try {
      this.#keepFreedMemory()
    } catch (error) {
      this[Symbol.dispose]()
      throw error
    }
  }

  #keepFreedMemory(): void {
    const out = new BigUint64Array(1)
    const status = this.attempt('cuDeviceGetDefaultMemPool', bytesOf(out), this.#cuDevice)
    if (status === NOT_SUPPORTED)
      throw new UnsupportedError(
        `Device ${this.device.ordinal} (${this.device.name}) has no stream-ordered memory.`,
        'Use another device (a virtual GPU may need memory pools turned on), or the CPU backend.',
      )
    if (status !== 0) this.fail(status, 'cuDeviceGetDefaultMemPool', `device ${this.device.ordinal}`)
    const all = bytesOf(BigUint64Array.of(0xffff_ffff_ffff_ffffn))
    this.call('cuMemPoolSetAttribute', out[0]!, RELEASE_THRESHOLD, all)
  }

  /** What was made in this context and is not disposed of yet. */
  get held(): Set<LiveResource> {
    return this.#held
  }

  /** Calls a driver function with this context current. @throws CudaError, DisposedError */
  call<F extends DriverFunction>(name: F, ...args: DriverArguments<F>): void {
    const status = this.attempt(name, ...args)
    if (status !== 0) this.fail(status, name, argumentsText(args))
  }

  /** Calls a driver function with this context current, and returns its CUresult. @throws DisposedError */
  attempt<F extends DriverFunction>(name: F, ...args: DriverArguments<F>): number {
    this.alive()
    this.driver.enter(this.#handle)
    return this.driver.api.call(name, ...args)
  }

  /** Calls a function that gives something back. A lost context has nothing to give back: then it does nothing. */
  giveBack<F extends DriverFunction>(name: F, ...args: DriverArguments<F>): void {
    if (!this.#lost) this.call(name, ...args)
  }

  /** @internal Throws the error of a status; `about` names the arguments that matter. */
  fail(status: number, call: string, about: string): never {
    try {
      return this.driver.fail(status, call, about, this.trail.list())
    } catch (error) {
      this.#lost ||= error instanceof CudaError && error.contextLost
      throw error
    }
  }

  /** Work queued in it failed on the device: every call fails from then on, and what it held is gone. */
  get lost(): boolean {
    return this.#lost
  }

  /** @throws InvalidArgumentError for something of another context: handles and streams don't reach over. */
  demand(other: { readonly context: Context }, what: string): void {
    if (other.context === this) return
    const { ordinal } = other.context.device
    const same = ordinal === this.device.ordinal
    throw new InvalidArgumentError(
      `${what} belongs to ${same ? `another context of device ${ordinal}` : `device ${ordinal}, the rest of the call to device ${this.device.ordinal}`}.`,
      'Make what works together in one context; between devices, copy through the host.',
    )
  }

  /** Calls a driver function whose first argument receives a handle or an address, and returns that. */
  create<F extends DriverFunction>(
    name: F,
    ...args: DriverArguments<F> extends readonly [unknown, ...infer Rest] ? Rest : never
  ): bigint {
    const out = new BigUint64Array(1)
    this.call(name, ...([bytesOf(out), ...args] as unknown as DriverArguments<F>))
    return out[0]!
  }

  /** Makes it the calling thread's context again, after another library of the process has set its own. */
  makeCurrent(): void {
    this.alive()
    this.driver.enter(this.#handle, true)
  }

  /** Waits for all work of the context. */
  synchronize(): void {
    this.call('cuCtxSynchronize')
  }

  /** Bytes of device memory, as the driver sees them for all processes. */
  memory(): { free: number; total: number } {
    const out = new BigUint64Array(2)
    this.call('cuMemGetInfo_v2', bytesOf(out.subarray(0, 1)), bytesOf(out.subarray(1)))
    return { free: Number(out[0]), total: Number(out[1]) }
  }

  /** @throws InvalidArgumentError while something made in it is alive. Nothing is released then. */
  protected release(): void {
    if (this.#held.size > 0 && !this.#lost) {
      const names = [...this.#held].slice(0, 4).map(({ what }) => what)
      throw new InvalidArgumentError(
        `The context of device ${this.device.ordinal} still holds ${this.#held.size} resources: ${names.join(', ')}.`,
        'Dispose of what was made in it first (declared with `using`, the order is right by itself).',
      )
    }
    this.driver.enter(0n)
    const status = this.driver.api.call('cuDevicePrimaryCtxRelease_v2', this.#cuDevice)
    if (status !== 0 && !this.#lost) this.fail(status, 'cuDevicePrimaryCtxRelease_v2', `device ${this.device.ordinal}`)
  }
}
