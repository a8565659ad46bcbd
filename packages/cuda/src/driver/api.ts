// The one file that touches native code: which driver functions are used, with which arguments, and how they are loaded.
import { createRequire } from 'node:module'
import { CudaUnavailableError } from '../errors'

/** `u32`, `i32`, `u64` (handles, device addresses, sizes), `mem`: host bytes or null, `text`: a zero-terminated string. */
type Parameter = 'u32' | 'i32' | 'u64' | 'mem' | 'text'
type Argument<P extends Parameter> = P extends 'u32' | 'i32'
  ? number
  : P extends 'u64'
    ? bigint | number
    : P extends 'mem'
      ? Uint8Array | null
      : string

/** Exported symbols with their parameters; each returns a CUresult. `_v2` and such name the ABI that these signatures fit. */
export const SIGNATURES = {
  cuInit: ['u32'],
  cuDriverGetVersion: ['mem'],
  cuDeviceGetCount: ['mem'],
  cuDeviceGet: ['mem', 'i32'],
  cuDeviceGetName: ['mem', 'i32', 'i32'],
  cuDeviceGetAttribute: ['mem', 'i32', 'i32'],
  cuDeviceTotalMem_v2: ['mem', 'i32'],
  cuDevicePrimaryCtxRetain: ['mem', 'i32'],
  cuDevicePrimaryCtxRelease_v2: ['i32'],
  cuDeviceGetDefaultMemPool: ['mem', 'i32'],
  cuMemPoolSetAttribute: ['u64', 'i32', 'mem'],
  cuCtxSetCurrent: ['u64'],
  cuCtxSynchronize: [],
  cuMemGetInfo_v2: ['mem', 'mem'],
  cuStreamCreate: ['mem', 'u32'],
  cuStreamDestroy_v2: ['u64'],
  cuStreamSynchronize: ['u64'],
  cuStreamQuery: ['u64'],
  cuStreamWaitEvent: ['u64', 'u64', 'u32'],
  cuStreamBeginCapture_v2: ['u64', 'i32'],
  cuStreamEndCapture: ['u64', 'mem'],
  cuEventCreate: ['mem', 'u32'],
  cuEventDestroy_v2: ['u64'],
  cuEventRecord: ['u64', 'u64'],
  cuEventQuery: ['u64'],
  cuEventSynchronize: ['u64'],
  cuEventElapsedTime: ['mem', 'u64', 'u64'],
  cuMemAllocAsync: ['mem', 'u64', 'u64'],
  cuMemFreeAsync: ['u64', 'u64'],
  cuMemHostAlloc: ['mem', 'u64', 'u32'],
  cuMemFreeHost: ['u64'],
  cuMemcpyHtoDAsync_v2: ['u64', 'mem', 'u64', 'u64'],
  cuMemcpyDtoHAsync_v2: ['mem', 'u64', 'u64', 'u64'],
  cuMemcpyDtoDAsync_v2: ['u64', 'u64', 'u64', 'u64'],
  cuMemsetD8Async: ['u64', 'u32', 'u64', 'u64'],
  cuModuleLoadData: ['mem', 'mem'],
  cuModuleUnload: ['u64'],
  cuModuleGetFunction: ['mem', 'u64', 'text'],
  cuFuncGetAttribute: ['mem', 'i32', 'u64'],
  cuFuncSetAttribute: ['u64', 'i32', 'i32'],
  cuLaunchKernelEx: ['mem', 'u64', 'mem', 'mem'],
  cuTensorMapEncodeTiled: ['mem', 'i32', 'u32', 'u64', 'mem', 'mem', 'mem', 'mem', 'i32', 'i32', 'i32', 'i32'],
  cuGraphInstantiateWithFlags: ['mem', 'u64', 'u64'],
  cuGraphLaunch: ['u64', 'u64'],
  cuGraphExecUpdate_v2: ['u64', 'u64', 'mem'],
  cuGraphExecDestroy: ['u64'],
  cuGraphDestroy: ['u64'],
} as const satisfies Record<string, readonly Parameter[]>

export type DriverFunction = keyof typeof SIGNATURES
type Arguments<P extends readonly Parameter[]> = { [I in keyof P]: Argument<P[I]> }
export type DriverArguments<F extends DriverFunction> = Arguments<(typeof SIGNATURES)[F]>

/** The driver as the rest of the package sees it: small enough that a test can stand in for it. */
export interface DriverApi {
  /** Calls a driver function and returns its CUresult, whatever it is. `args` in the order of its signature. */
  call<F extends DriverFunction>(name: F, ...args: DriverArguments<F>): number
  /** Address of host bytes. They must be kept alive, and be backed by an ArrayBuffer of their own. */
  address(bytes: Uint8Array): bigint
  /** The memory at a host address that the driver allocated. */
  view(address: bigint, bytes: number): ArrayBuffer
  /** Name of a CUresult, such as `CUDA_ERROR_INVALID_VALUE`. */
  statusName(status: number): string
  /** The thread's current context as last set over this binding: one for all Driver objects, as the driver has one. */
  readonly current: { context: bigint }
}

type Koffi = typeof import('koffi')
const KOFFI_TYPES: Record<Parameter, string> = {
  u32: 'uint32_t',
  i32: 'int32_t',
  u64: 'uint64_t',
  mem: 'void *',
  text: 'str',
}

/** File name of the driver's library on a platform, or null where there is none. */
export function driverLibrary(platform: string): string | null {
  return platform === 'win32' ? 'nvcuda.dll' : platform === 'linux' ? 'libcuda.so.1' : null
}

let loaded: DriverApi | undefined

/** Loads the driver, on first use only. @throws CudaUnavailableError when there is none, or it is too old. */
export function loadDriver(): DriverApi {
  loaded ??= bind(openLibrary(process.platform))
  return loaded
}

/** @internal The library opened through koffi, each failure a typed error. Parameters stand in for the machine in tests. */
export function openLibrary(platform: string, file = driverLibrary(platform), requireKoffi = loadKoffi) {
  if (!file) {
    throw new CudaUnavailableError(
      `There is no NVIDIA driver for ${platform}.`,
      'Use the CPU backend, or a machine with Linux or Windows.',
    )
  }
  let koffi: Koffi
  try {
    koffi = requireKoffi()
  } catch (cause) {
    throw new CudaUnavailableError(
      `koffi, which calls native libraries, can't be loaded on ${platform}-${process.arch}: ${(cause as Error).message}`,
      'Install @flashmla/cuda with its optional dependencies, and keep koffi external when bundling.',
      cause,
    )
  }
  try {
    return { koffi, library: koffi.load(file), file }
  } catch (cause) {
    throw new CudaUnavailableError(
      `The NVIDIA driver's library ${file} can't be loaded: ${(cause as Error).message}`,
      'Install the NVIDIA driver (no CUDA toolkit is needed); in a container, start it with the GPUs passed through (--gpus all).',
      cause,
    )
  }
}

// A plain require at first use: bundlers leave it alone, and importing the package touches no native code.
function loadKoffi(): Koffi {
  return createRequire(import.meta.url)('koffi') as Koffi
}

/** @internal The functions of an opened library, each looked up when it is first called. @throws CudaUnavailableError */
export function bind({ koffi, library, file }: ReturnType<typeof openLibrary>): DriverApi {
  const lookUp = (name: string, types: string[]) => {
    try {
      return library.func(name, 'int', types) as (...args: unknown[]) => number
    } catch (cause) {
      throw new CudaUnavailableError(
        `${file} has no ${name}.`,
        'Update the NVIDIA driver to 525 (CUDA 12.0) or later.',
        cause,
      )
    }
  }
  const functions = new Map<DriverFunction, (...args: unknown[]) => number>()
  const bound = (name: DriverFunction) => {
    let call = functions.get(name)
    if (!call) {
      const types = SIGNATURES[name].map((parameter) => KOFFI_TYPES[parameter])
      call = lookUp(name, types)
      functions.set(name, call)
    }
    return call
  }
  const errorName = lookUp('cuGetErrorName', ['int', 'void *'])
  return {
    current: { context: 0n },
    call: (name, ...args) => bound(name)(...args),
    address: (bytes) => BigInt(koffi.address(bytes)),
    view: (address, bytes) => koffi.view(address, bytes),
    statusName(status) {
      const out = new BigUint64Array(1)
      return errorName(status, out) === 0 ? koffi.decode.string(out[0]) : `CUresult ${status}`
    },
  }
}
