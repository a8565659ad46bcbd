import { availableParallelism } from 'node:os'
import type { Backend } from '@flashmla/spec'
import { FlashMlaError, InvalidArgumentError } from '@flashmla/spec'
import { ReferenceBackend } from '../reference'
import type { CpuBackend } from './backend'
import { FastCpuBackend } from './backend'
import type { SimdLevel } from './detect'
import { selectModule } from './detect'
import { ThreadPool } from './pool'
import type { WeightPrecision } from './weight'

export interface CpuBackendOptions {
  /** Threads that work, this one included; by default as many as the process may use. Results don't depend on it. */
  readonly threads?: number
  /** How weights are kept; `checkpoint` (default) loses nothing: bf16 stays bf16, f32 and f16 become f32. */
  readonly weights?: WeightPrecision
  /** By default `relaxed` where the runtime has it. */
  readonly simd?: SimdLevel
  /** Polls a thread makes before it sleeps (default 200 000, some 0.2 ms: waking costs a thread about as much). */
  readonly spin?: number
}

/**
 * The fast CPU backend: WebAssembly SIMD kernels on worker threads over one shared memory.
 * @throws UnsupportedError where the runtime lacks WebAssembly SIMD, shared memory, worker threads or address space
 */
export async function createCpuBackend(options: CpuBackendOptions = {}): Promise<CpuBackend> {
  const threads = options.threads ?? availableParallelism()
  if (!Number.isInteger(threads) || threads < 1 || threads > 256)
    throw new InvalidArgumentError(`${threads} threads can't be started.`, 'Give a whole number from 1 to 256.')
  const { level, module } = selectModule(options.simd)
  const pool = await ThreadPool.start(module, threads, options.spin ?? 200_000)
  const weights = options.weights ?? 'checkpoint'
  const kind = level === 'relaxed' ? 'relaxed SIMD' : 'SIMD'
  const kept = weights === 'checkpoint' ? '' : `, ${weights} weights`
  return new FastCpuBackend(
    `cpu (WebAssembly ${kind}, ${threads} thread${threads > 1 ? 's' : ''}${kept})`,
    pool,
    weights,
  )
}

/** The fast backend, or the reference where the runtime can't run it: `onFallback` hears why. */
export async function openCpuBackend(
  options: CpuBackendOptions & { readonly onFallback?: (reason: FlashMlaError) => void } = {},
): Promise<Backend> {
  try {
    return await createCpuBackend(options)
  } catch (error) {
    if (!FlashMlaError.isInstance(error) || error.code !== 'unsupported') throw error
    options.onFallback?.(error)
    return new ReferenceBackend()
  }
}
