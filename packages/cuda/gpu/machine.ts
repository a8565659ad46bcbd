import { type Context, type CudaBackend, KernelLibrary, Stream } from '../src/index'

/** The device under test, opened once. */
export interface Machine {
  readonly context: Context
  readonly stream: Stream
  readonly library: KernelLibrary
  /** Backends that cases opened, by their options. */
  readonly backends: Map<string, Promise<CudaBackend>>
}

/** A stream, the kernels and no backend yet, on a context that stays the caller's. */
export function machineOn(context: Context): Machine {
  return { context, stream: new Stream(context), library: new KernelLibrary(context), backends: new Map() }
}

/** Disposes of all but the context. */
export async function close({ stream, library, backends }: Machine): Promise<void> {
  for (const backend of backends.values()) (await backend).dispose()
  library[Symbol.dispose]()
  stream[Symbol.dispose]()
}

/** What needs a device: throws what is wrong, returns what it measured. */
export type Case = readonly [name: string, run: (machine: Machine) => string | Promise<string>]
