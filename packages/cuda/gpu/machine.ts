import type { Context, CudaBackend, KernelLibrary, Stream } from '../src/index'

/** The device under test, opened once. */
export interface Machine {
  readonly context: Context
  readonly stream: Stream
  readonly library: KernelLibrary
  /** Backends that cases opened, by their options. */
  readonly backends: Map<string, Promise<CudaBackend>>
}

/** What needs a device: throws what is wrong, returns what it measured. */
export type Case = readonly [name: string, run: (machine: Machine) => string | Promise<string>]
