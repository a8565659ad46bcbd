import { createCpuBackend, ReferenceBackend } from '@flashmla/cpu'
import type { Probe } from '@flashmla/cuda'
import type { Backend } from '@flashmla/spec'
import { FlashMlaError } from '@flashmla/spec'
import { choice, number } from './options'

interface Choice {
  /** @throws UnsupportedError where this machine can't run it */
  open(threads: number | undefined): Promise<Backend>
  /** Most machines lack it: `auto` goes on without a word, and `doctor` says why. */
  readonly rare?: boolean
}

/** The best one first: `auto` takes the first that this machine can run. */
const backends: Readonly<Record<'cuda' | 'cpu' | 'reference', Choice>> = {
  // Loaded when it is asked for: without a GPU it costs the look for a driver.
  cuda: { open: async () => (await import('@flashmla/cuda')).createCudaBackend(), rare: true },
  cpu: { open: (threads) => createCpuBackend(threads ? { threads } : {}) },
  reference: { open: async () => new ReferenceBackend() },
}

type BackendId = keyof typeof backends
const ids = Object.keys(backends) as BackendId[]

export const backendHelp = `  --backend NAME           ${['auto', ...ids].join(', ')} (default auto: the fastest that this machine runs)
  --threads N              of the CPU backend (default: as many as the process may use)`

/** The backend that the options name; its `name` tells the user which it became. */
export async function openBackend(options: { backend: string; threads?: string | undefined }): Promise<Backend> {
  const id = choice('backend', options.backend, ['auto', ...ids])
  const threads = options.threads === undefined ? undefined : number('threads', options.threads, 1, 256)
  if (id !== 'auto') return backends[id].open(threads)
  for (const candidate of ids) {
    try {
      return await backends[candidate].open(threads)
    } catch (error) {
      if (!FlashMlaError.isInstance(error) || error.code !== 'unsupported') throw error
      if (!backends[candidate].rare)
        process.stderr.write(`${candidate} backend: ${error.message.split('\n')[0]} Trying the next.\n`)
    }
  }
  return new ReferenceBackend()
}

export interface BackendCheck {
  readonly id: string
  readonly usable: boolean
  /** The one that `auto` takes. */
  readonly chosen: boolean
  readonly detail: string
}

/** Opens each backend once, but the GPU's: `cuda` is what a child process found, so that a crash of its driver stays there. */
export async function checkBackends(cuda: Probe): Promise<BackendCheck[]> {
  const checks: BackendCheck[] = []
  for (const id of ids) {
    if (id === 'cuda') {
      checks.push(checkCuda(cuda))
      continue
    }
    try {
      const backend = await backends[id].open(undefined)
      checks.push({ id, usable: true, chosen: !checks.some(({ usable }) => usable), detail: backend.name })
      backend.dispose()
    } catch (error) {
      if (!FlashMlaError.isInstance(error)) throw error
      checks.push({ id, usable: false, chosen: false, detail: error.message })
    }
  }
  return checks
}

/** Of device 0, which the backend takes. */
function checkCuda(cuda: Probe): BackendCheck {
  const usable = cuda.available && cuda.devices[0]!.kernels.length > 0
  const [first] = cuda.available ? cuda.devices : []
  const detail = cuda.available ? (usable ? `cuda (${first!.name})` : first!.why) : cuda.reason
  return { id: 'cuda', usable, chosen: usable, detail }
}
