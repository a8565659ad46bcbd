import { InvalidArgumentError, UnsupportedError } from '@flashmla/spec'
import { Context } from '../driver/context'
import { Driver, versionText } from '../driver/driver'
import { CudaError } from '../errors'
import { SMALLEST_KERNEL } from '../kernels/library'
import { type AttentionPrecision, CudaBackend } from './backend'
import { BackendDevice } from './device'
import type { WeightPrecision } from './weight'

/** What the driver answers to code that it doesn't take: NO_BINARY_FOR_GPU, INVALID_PTX, no compiler for it, or one that is too old. */
const CODE_REFUSED: ReadonlySet<number> = new Set([209, 218, 221, 222, 223])

export interface CudaBackendOptions {
  /** Ordinal (default 0). */
  readonly device?: number
  /** How weights are kept; `checkpoint` (default) loses nothing: bf16 stays bf16, f32 and f16 become f32. */
  readonly weights?: WeightPrecision
  /**
   * `exact` (default) attends in float32, over every cache format. `fast` takes the decode kernels where the cache is bf16-576:
   * queries and probabilities are rounded to bf16, results differ by about 1e-3.
   */
  readonly attention?: AttentionPrecision
  /** Launches that repeat from step to step become graphs, so that a step costs the host little (default true). Same results. */
  readonly graphs?: boolean
  /** @internal Stand-in for the driver, in tests. */
  readonly driver?: Driver
}

/**
 * A backend on one NVIDIA device, with the device's primary context.
 * @throws CudaUnavailableError without a driver or a device, UnsupportedError for a device without kernels or a driver
 * that is too old for them: both let a caller fall back. InvalidArgumentError for options that name nothing, CudaError
 */
export async function createCudaBackend(options: CudaBackendOptions = {}): Promise<CudaBackend> {
  const { device: ordinal = 0, weights = 'checkpoint', attention = 'exact' } = options
  demand('weights', weights, ['checkpoint', 'bf16', 'f32'])
  demand('attention', attention, ['exact', 'fast'])
  const context = new Context({ device: ordinal, driver: options.driver ?? new Driver() })
  let device: BackendDevice
  try {
    device = new BackendDevice(context, options.graphs ?? true)
  } catch (error) {
    context[Symbol.dispose]()
    throw error
  }
  try {
    device.library.kernel(SMALLEST_KERNEL)
  } catch (error) {
    device.dispose()
    throw error instanceof CudaError && CODE_REFUSED.has(error.status) ? refused(context, error) : error
  }
  const kept = weights === 'checkpoint' ? '' : `, ${weights} weights`
  const how = attention === 'exact' ? '' : ', bf16 attention'
  return new CudaBackend(`cuda (${context.device.name}${kept}${how})`, device, weights, attention)
}

function refused({ device, driver }: Context, { statusName, status }: CudaError): UnsupportedError {
  return new UnsupportedError(
    `The driver for CUDA ${versionText(driver.version)} can't load the kernels of device ${device.ordinal} (${device.name}): ${statusName} (${status}).`,
    'Update the NVIDIA driver to 580 (CUDA 13.0) or later, or use the CPU backend.',
  )
}

function demand(name: string, value: string, known: readonly string[]): void {
  if (known.includes(value)) return
  throw new InvalidArgumentError(`${name} is ${value}.`, `Give one of ${known.join(', ')}.`)
}
