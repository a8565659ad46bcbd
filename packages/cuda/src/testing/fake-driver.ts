// A driver without a device, for tests: it keeps handles and byte buffers, records every call and runs no kernel.
import type { DriverApi, DriverFunction } from '../driver/api'
import { attributeOf, type FakeDevice, H100 } from './fake-device'

/** What a launch handed over: the launch configuration and each parameter's bytes, copied at that moment. */
export interface FakeLaunch {
  symbol: string
  grid: number[]
  block: number[]
  sharedBytes: number
  stream: bigint
  attributes: Map<number, number[]>
  parameters: Uint8Array[]
}

/** CUdevice of ordinal 0: a handle, not the ordinal. */
const FIRST_DEVICE = 0x10

/** What the pool hands out is a multiple of it. */
const PAGE_BYTES = 512
const pagesOf = (bytes: number) => Math.ceil(bytes / PAGE_BYTES)

type Arguments = readonly (bigint | number | string | Uint8Array | null)[]

export class FakeDriver implements DriverApi {
  readonly calls: { name: DriverFunction; args: Arguments }[] = []
  readonly launches: FakeLaunch[] = []
  /** Device memory by address. */
  readonly memory = new Map<bigint, Uint8Array>()
  readonly hostMemory = new Map<bigint, ArrayBuffer>()
  /** Handles alive, with what they are. */
  readonly handles = new Map<bigint, string>()
  readonly retained = new Map<number, number>()
  readonly functionShared = new Map<bigint, number>()
  readonly devices: FakeDevice[]
  /** Statuses that calls are to return instead of doing anything. */
  readonly failures = new Map<DriverFunction, number>()
  /** Bytes of each kernel parameter, for copying them at a launch. */
  parameterBytes: (symbol: string) => number[] = () => []
  version = 12040
  /** Freed memory is what the next allocation of its size gets, as the driver's pool does. */
  reusesMemory = false
  /** Addresses of freed memory by their size in pages. */
  readonly #freed = new Map<number, bigint[]>()
  readonly current = { context: 0n }
  /** Context that each handle was made in: used in another one, it is refused as the driver does. */
  readonly #owners = new Map<bigint, bigint>()
  #context = 0n
  #next = 0x1000n
  readonly #symbols = new Map<bigint, string>()
  readonly #addresses = new WeakMap<ArrayBufferLike, bigint>()
  readonly #buffers: { base: bigint; buffer: ArrayBufferLike }[] = []

  constructor(devices: FakeDevice[] = [H100]) {
    this.devices = devices
  }

  called(name: DriverFunction): Arguments[] {
    return this.calls.filter((call) => call.name === name).map(({ args }) => args)
  }

  statusName(status: number): string {
    const names: Record<number, string> = {
      1: 'CUDA_ERROR_INVALID_VALUE',
      2: 'CUDA_ERROR_OUT_OF_MEMORY',
      100: 'CUDA_ERROR_NO_DEVICE',
      400: 'CUDA_ERROR_INVALID_HANDLE',
      700: 'CUDA_ERROR_ILLEGAL_ADDRESS',
      802: 'CUDA_ERROR_SYSTEM_NOT_READY',
    }
    return names[status] ?? `CUresult ${status}`
  }

  address(bytes: Uint8Array): bigint {
    let base = this.#addresses.get(bytes.buffer)
    if (base === undefined) {
      base = this.#reserve(bytes.buffer.byteLength) + 8n // only 8-aligned, as an allocator may give
      this.#addresses.set(bytes.buffer, base)
      this.#buffers.push({ base, buffer: bytes.buffer })
    }
    return base + BigInt(bytes.byteOffset)
  }

  view(address: bigint): ArrayBuffer {
    return this.hostMemory.get(address)!
  }

  /** Host bytes at an address that `address` gave. */
  read(address: bigint, bytes: number): Uint8Array {
    const at = this.#buffers.find(
      ({ base, buffer }) => base <= address && address + BigInt(bytes) <= base + BigInt(buffer.byteLength),
    )
    if (!at) throw new RangeError(`Nothing of ${bytes} bytes stands at ${address}`)
    return new Uint8Array(at.buffer, Number(address - at.base), bytes)
  }

  /** The bytes of device memory from an address on. */
  device(address: bigint): Uint8Array {
    for (const [base, bytes] of this.memory) {
      if (base <= address && address < base + BigInt(bytes.length)) return bytes.subarray(Number(address - base))
    }
    throw new RangeError(`No device memory at ${address}`)
  }

  call(name: DriverFunction, ...args: Arguments): number {
    this.calls.push({ name, args })
    const failure = this.failures.get(name)
    if (failure !== undefined) return failure
    if (!this.#inContext(name, args)) return 400
    return this.#run(name, args)
  }

  // Waiting for another device's event is the one use across contexts that the driver allows.
  #inContext(name: DriverFunction, args: Arguments): boolean {
    const handles = name === 'cuStreamWaitEvent' ? args.slice(0, 1) : args
    return handles.every((arg) => typeof arg !== 'bigint' || (this.#owners.get(arg) ?? this.#context) === this.#context)
  }

  #device(handle: unknown): FakeDevice {
    return this.devices[(handle as number) - FIRST_DEVICE]!
  }

  #reserve(bytes: number): bigint {
    const address = this.#next
    this.#next += BigInt(Math.ceil(bytes / 256) + 1) * 256n
    return address
  }

  #create(out: unknown, what: string): number {
    const handle = this.#reserve(1)
    this.handles.set(handle, what)
    this.#owners.set(handle, this.#context)
    return put64(out, handle)
  }

  // A handle that is not alive is what a wrong order of disposal would give.
  #destroy(handle: unknown): number {
    return this.handles.delete(BigInt(handle as bigint)) ? 0 : 1
  }

  #run(name: DriverFunction, args: Arguments): number {
    const [a, b, c] = args
    switch (name) {
      case 'cuInit':
        return this.devices.length > 0 ? 0 : 100
      case 'cuDriverGetVersion':
        return put32(a, this.version)
      case 'cuDeviceGetCount':
        return put32(a, this.devices.length)
      case 'cuDeviceGet':
        return put32(a, FIRST_DEVICE + (b as number))
      case 'cuDeviceGetName':
        ;(a as Uint8Array).set(new TextEncoder().encode(`${this.#device(c).name}\0`))
        return 0
      case 'cuDeviceTotalMem_v2':
        return put64(a, BigInt(this.#device(b).memoryBytes))
      case 'cuDeviceGetAttribute':
        return put32(a, attributeOf(this.#device(c), b as number))
      case 'cuDevicePrimaryCtxRetain': {
        const ordinal = this.devices.indexOf(this.#device(b))
        this.retained.set(ordinal, (this.retained.get(ordinal) ?? 0) + 1)
        return put64(a, 0xc0000n + BigInt(ordinal))
      }
      case 'cuDevicePrimaryCtxRelease_v2': {
        const ordinal = this.devices.indexOf(this.#device(a))
        this.retained.set(ordinal, this.retained.get(ordinal)! - 1)
        return 0
      }
      case 'cuCtxSetCurrent':
        this.#context = BigInt(a as bigint)
        return 0
      case 'cuMemGetInfo_v2':
        return put64(a, 1000n) || put64(b, 2000n)
      case 'cuMemAllocAsync': {
        const address = this.#freed.get(pagesOf(Number(b)))?.shift() ?? this.#reserve(pagesOf(Number(b)) * PAGE_BYTES)
        this.memory.set(address, new Uint8Array(Number(b)).fill(0xff)) // poisoned: NaN in every float type
        return put64(a, address)
      }
      case 'cuMemFreeAsync': {
        const bytes = this.memory.get(a as bigint)
        if (!bytes) return 1
        const pages = pagesOf(bytes.length)
        if (this.reusesMemory) this.#freed.set(pages, [...(this.#freed.get(pages) ?? []), a as bigint])
        this.memory.delete(a as bigint)
        return 0
      }
      case 'cuMemHostAlloc': {
        const address = this.#reserve(Number(b))
        this.hostMemory.set(address, new ArrayBuffer(Number(b)))
        return put64(a, address)
      }
      case 'cuMemFreeHost':
        return this.hostMemory.delete(BigInt(a as bigint)) ? 0 : 1
      case 'cuMemcpyHtoDAsync_v2':
        this.device(a as bigint).set((b as Uint8Array).subarray(0, Number(c)))
        return 0
      case 'cuMemcpyDtoHAsync_v2':
        ;(a as Uint8Array).set(this.device(b as bigint).subarray(0, Number(c)))
        return 0
      case 'cuMemcpyDtoDAsync_v2':
        this.device(a as bigint).set(this.device(b as bigint).subarray(0, Number(c)))
        return 0
      case 'cuMemsetD8Async':
        this.device(a as bigint).fill(b as number, 0, Number(c))
        return 0
      case 'cuStreamCreate':
        return this.#create(a, 'stream')
      case 'cuEventCreate':
        return this.#create(a, 'event')
      case 'cuModuleLoadData':
        return this.#create(a, 'module')
      case 'cuStreamEndCapture':
        return this.#create(b, 'graph')
      case 'cuGraphInstantiateWithFlags':
        return this.#create(a, 'exec')
      case 'cuStreamDestroy_v2':
      case 'cuEventDestroy_v2':
      case 'cuModuleUnload':
      case 'cuGraphDestroy':
      case 'cuGraphExecDestroy':
        return this.#destroy(a)
      case 'cuModuleGetFunction': {
        const handle = this.#reserve(1)
        this.#symbols.set(handle, c as string)
        this.#owners.set(handle, this.#context)
        return put64(a, handle)
      }
      case 'cuFuncSetAttribute':
        this.functionShared.set(a as bigint, c as number)
        return 0
      case 'cuTensorMapEncodeTiled':
        return this.address(a as Uint8Array) % 64n === 0n ? 0 : 1
      case 'cuLaunchKernelEx':
        this.launches.push(this.#launch(a as Uint8Array, b as bigint, c as Uint8Array))
        return 0
      default:
        return 0
    }
  }

  #launch(config: Uint8Array, kernel: bigint, pointers: Uint8Array): FakeLaunch {
    const view = viewOf(config)
    const words = (at: number) => [0, 4, 8].map((offset) => view.getUint32(at + offset, true))
    const symbol = this.#symbols.get(kernel)!
    const attributes = new Map<number, number[]>()
    for (let i = 0; i < view.getUint32(48, true); i++) {
      const attribute = viewOf(this.read(view.getBigUint64(40, true) + BigInt(i * 72), 72))
      attributes.set(
        attribute.getUint32(0, true),
        [8, 12, 16].map((offset) => attribute.getUint32(offset, true)),
      )
    }
    const parameters = this.parameterBytes(symbol).map((bytes, i) =>
      this.read(viewOf(pointers).getBigUint64(8 * i, true), bytes).slice(),
    )
    const sharedBytes = view.getUint32(24, true)
    const stream = view.getBigUint64(32, true)
    return { symbol, grid: words(0), block: words(12), sharedBytes, stream, attributes, parameters }
  }
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

function put32(out: unknown, value: number): 0 {
  viewOf(out as Uint8Array).setInt32(0, value, true)
  return 0
}

function put64(out: unknown, value: bigint): 0 {
  viewOf(out as Uint8Array).setBigUint64(0, value, true)
  return 0
}
