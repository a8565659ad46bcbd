import { existsSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { UnsupportedError } from '@flashmla/spec'
import type { Context } from '../driver/context'
import { type Kernel, Module } from '../driver/module'
import { Resource } from '../driver/resource'
import { readImage } from './image'

/** One compiled kernel, as `cubin/manifest.json` describes it. */
export interface KernelEntry {
  readonly module: string
  /** Of the module's file. */
  readonly moduleSha256: string
  /** `sm_90a`: machine code for Hopper; `compute_80`: PTX for Ampere and later. */
  readonly target: 'sm_90a' | 'compute_80'
  readonly symbol: string
  readonly threads: number
  /** Dynamic shared memory of a block, in bytes. */
  readonly sharedBytes: number
  readonly cluster: number
  /** Query rows of a block; decode kernels only. */
  readonly tileRows?: number
}

export interface Manifest {
  readonly version: number
  readonly kernels: readonly KernelEntry[]
}

/** Where the compiled kernels lie: beside `dist` in the installed package, beside `src` in the repository. */
function folder(): string {
  const here = dirname(fileURLToPath(import.meta.url))
  return ['../cubin', '../../cubin'].map((path) => join(here, path)).find((path) => existsSync(path)) ?? here
}

/** @throws UnsupportedError when the package lacks its kernels, or the manifest is not whole */
export function readManifest(directory: string = folder()): Manifest {
  const path = join(directory, 'manifest.json')
  let manifest: Partial<Manifest> | null
  try {
    manifest = JSON.parse(readFileSync(path, 'utf8')) as Partial<Manifest> | null
  } catch (error) {
    throw new UnsupportedError(
      `The compiled kernels can't be read from ${path}: ${(error as Error).message}`,
      'Install @flashmla/cuda whole; when bundling, keep it external so that its cubin folder stays beside it.',
    )
  }
  if (manifest?.version !== 1) {
    throw new UnsupportedError(
      `The kernels' manifest ${path} has version ${manifest?.version}, not 1.`,
      'Reinstall @flashmla/cuda.',
    )
  }
  const wrong = Array.isArray(manifest.kernels) ? manifest.kernels.findIndex((entry) => !isEntry(entry)) : 0
  if (wrong === -1) return manifest as Manifest
  throw new UnsupportedError(
    `Entry ${wrong} of the kernels' manifest ${path} does not describe a kernel.`,
    'Reinstall @flashmla/cuda.',
  )
}

function isEntry(entry: Partial<KernelEntry> | null): boolean {
  const whole = (value: unknown, least: number) => Number.isInteger(value) && (value as number) >= least
  return (
    typeof entry?.module === 'string' &&
    typeof entry.moduleSha256 === 'string' &&
    typeof entry.symbol === 'string' &&
    (entry.target === 'sm_90a' || entry.target === 'compute_80') &&
    whole(entry.threads, 1) &&
    whole(entry.sharedBytes, 0) &&
    whole(entry.cluster, 1) &&
    (entry.tileRows === undefined || whole(entry.tileRows, 1))
  )
}

/** Of the smallest module, to try a device out: its PTX takes the driver no time to compile. */
export const SMALLEST_KERNEL = 'mla_append'

/** Which compiled code fits a compute capability, and why. @throws UnsupportedError before Ampere */
export function targetFor([major, minor]: readonly [number, number]): { target: KernelEntry['target']; why: string } {
  const capability = `compute capability ${major}.${minor}`
  if (major === 9) return { target: 'sm_90a', why: `${capability}: Hopper machine code (wgmma, TMA)` }
  if (major >= 8) return { target: 'compute_80', why: `${capability}: portable PTX, compiled by the driver` }
  throw new UnsupportedError(
    `A device of ${capability} has no kernels here.`,
    'Use a device of compute capability 8.0 (Ampere) or later, or the CPU backend.',
  )
}

/** The package's kernels on one context: modules are loaded on first use, once. Disposing of it unloads them. */
export class KernelLibrary extends Resource {
  readonly context: Context
  readonly target: KernelEntry['target']
  readonly why: string
  readonly #directory: string
  readonly #manifest: Manifest
  /** Those of the device's target, by symbol: every launch asks for one. */
  readonly #entries: ReadonlyMap<string, KernelEntry>
  readonly #modules = new Map<string, Module>()
  readonly #kernels = new Map<string, Kernel>()

  /** @throws UnsupportedError for a device without kernels, or when the package lacks its own */
  constructor(context: Context, directory: string = folder()) {
    const { target, why } = targetFor(context.device.computeCapability)
    super(context.driver, `The kernels of device ${context.device.ordinal}`, [context.held])
    this.context = context
    this.target = target
    this.why = why
    this.#directory = directory
    this.#manifest = readManifest(directory)
    const fitting = this.#manifest.kernels.filter((entry) => entry.target === target)
    this.#entries = new Map(fitting.map((entry) => [entry.symbol, entry]))
    this.hold()
  }

  /** @throws UnsupportedError when the device's target lacks it */
  entry(symbol: string): KernelEntry {
    const found = this.find(symbol)
    if (found) return found
    throw new UnsupportedError(
      `There is no kernel ${symbol} for ${this.target} (device ${this.context.device.ordinal}, ${this.why}).`,
      'probe() lists the kernels of each device; use another device or the CPU backend.',
    )
  }

  find(symbol: string): KernelEntry | undefined {
    return this.#entries.get(symbol)
  }

  /**
   * `sharedBytes` of dynamic shared memory, where a shape asks for more than the manifest says; a larger one replaces the one before.
   * @throws UnsupportedError when the device has no such kernel or too little shared memory for it, or when its compiled code is
   * missing or not as it was built; CudaError, DisposedError
   */
  kernel(symbol: string, sharedBytes = this.entry(symbol).sharedBytes): Kernel {
    this.alive()
    let kernel = this.#kernels.get(symbol)
    if (kernel && kernel.sharedBytes >= sharedBytes) return kernel
    const { module: name, moduleSha256 } = this.entry(symbol)
    const { ordinal, sharedBytesPerBlock } = this.context.device
    if (sharedBytes > sharedBytesPerBlock) {
      throw new UnsupportedError(
        `${symbol} needs ${sharedBytes} bytes of shared memory; device ${ordinal} gives a block ${sharedBytesPerBlock}.`,
        'Use another device, or the CPU backend.',
      )
    }
    let module = this.#modules.get(name)
    if (!module) {
      const symbols = this.#manifest.kernels.filter((entry) => entry.module === name).map((entry) => entry.symbol)
      module = new Module(this.context, name, readImage(this.#directory, name, symbols, moduleSha256))
      this.#modules.set(name, module)
    }
    kernel = module.kernel(symbol, sharedBytes)
    this.#kernels.set(symbol, kernel)
    return kernel
  }

  protected release(): void {
    for (const module of this.#modules.values()) module[Symbol.dispose]()
  }
}
