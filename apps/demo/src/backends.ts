import { createCpuBackend, ReferenceBackend } from '@flashmla/cpu'
import type { Probe } from '@flashmla/cuda'
import type { CacheFormatName } from '@flashmla/engine'
import type { Backend } from '@flashmla/spec'
import { FlashMlaError, InvalidArgumentError } from '@flashmla/spec'
import { choice, number } from './options'

interface Given {
  readonly threads?: number | undefined
  /** Of the GPU. */
  readonly device?: number | undefined
  readonly fast?: boolean
}

interface Choice {
  /** @throws UnsupportedError where this machine can't run it */
  open(given: Given): Promise<Backend>
  /** Most machines lack it: `auto` goes on without a word, and `doctor` says why. */
  readonly rare?: boolean
}

/** The best one first: `auto` takes the first that this machine can run. */
const backends: Readonly<Record<'cuda' | 'cpu' | 'reference', Choice>> = {
  // Loaded when it is asked for: without a GPU it costs the look for a driver.
  cuda: {
    open: async ({ device = 0, fast }) =>
      (await import('@flashmla/cuda')).createCudaBackend({ device, attention: fast ? 'fast' : 'exact' }),
    rare: true,
  },
  cpu: { open: ({ threads }) => createCpuBackend(threads ? { threads } : {}) },
  reference: { open: async () => new ReferenceBackend() },
}

type BackendId = keyof typeof backends
const ids = Object.keys(backends) as BackendId[]

export const backendHelp = `  --backend NAME           ${['auto', ...ids].join(', ')} (default auto: the fastest that this machine runs)
  --threads N              of the CPU backend (default: as many as the process may use)
  --device N               of the cuda backend (default 0)
  --fast                   attention by the GPU's decode kernels over a bf16 cache: logits are off by 1e-2 instead of 1e-5, long contexts many times as fast`

/** For `parseArgs`. */
export const backendOptions = {
  backend: { type: 'string', default: 'auto' },
  threads: { type: 'string' },
  device: { type: 'string' },
  fast: { type: 'boolean', default: false },
} as const

interface BackendValues {
  readonly backend: string
  readonly threads?: string | undefined
  readonly device?: string | undefined
  readonly fast: boolean
}

/** A backend, and which it became; its `name` tells the user. */
export interface Opened {
  readonly id: BackendId
  readonly backend: Backend
}

/** The backend that the options name. @throws InvalidArgumentError, UnsupportedError */
export async function openBackend(options: BackendValues): Promise<Opened> {
  const { fast, device } = options
  const id = choice('backend', options.backend, ['auto', ...ids])
  const given = {
    threads: options.threads === undefined ? undefined : number('threads', options.threads, 1, 256),
    device: device === undefined ? undefined : number('device', device, 0, 255),
    fast,
  }
  const ofGpu = fast ? '--fast' : device !== undefined ? '--device' : undefined
  if (ofGpu && id !== 'auto' && id !== 'cuda')
    throw new InvalidArgumentError(`${ofGpu} is of the cuda backend, not of ${id}.`, 'Leave it out, or choose cuda.')
  const wanted = ofGpu ? 'cuda' : id
  if (wanted !== 'auto') return { id: wanted, backend: await backends[wanted].open(given) }
  for (const candidate of ids) {
    try {
      return { id: candidate, backend: await backends[candidate].open(given) }
    } catch (error) {
      if (!FlashMlaError.isInstance(error) || error.code !== 'unsupported') throw error
      if (!backends[candidate].rare)
        process.stderr.write(`${candidate} backend: ${error.message.split('\n')[0]} Trying the next.\n`)
    }
  }
  return { id: 'reference', backend: new ReferenceBackend() }
}

/** The cache format of `--cache`. @throws InvalidArgumentError for one that `--fast` can't have */
export function cacheOf({
  cache,
  fast,
}: {
  readonly cache?: string | undefined
  readonly fast: boolean
}): CacheFormatName {
  const format = choice('cache', cache ?? (fast ? 'bf16' : 'f32'), ['f32', 'bf16', 'fp8-656'])
  if (fast && format !== 'bf16')
    throw new InvalidArgumentError(`--fast can't have a ${format} cache.`, 'Leave --cache out: it is bf16 then.')
  return format
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
      const backend = await backends[id].open({})
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
