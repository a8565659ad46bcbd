import { FlashMlaError, UnsupportedError } from '@flashmla/spec'

/** The driver can't be used on this machine: no driver library, one that is too old, or no device. A caller may fall back. */
export class CudaUnavailableError extends UnsupportedError {
  constructor(fact: string, hint: string, cause?: unknown) {
    super(fact, hint)
    if (cause !== undefined) this.cause = cause
  }
}

/**
 * Statuses of work that failed on the device: every later call of the context returns the same, and what it held is lost.
 * Such a status may come back from a call that has nothing to do with it.
 */
const CONTEXT_LOST: ReadonlySet<number> = new Set([214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719])

/** A driver call returned a status other than success. */
export class CudaError extends FlashMlaError {
  /** CUresult. */
  readonly status: number
  /** Name of the status, such as `CUDA_ERROR_OUT_OF_MEMORY`. */
  readonly statusName: string
  /** Driver function that returned it. */
  readonly call: string
  /** The context can't be used any more: work queued before this call failed on the device. A new process is needed. */
  readonly contextLost: boolean
  /** With `contextLost`, what was queued last, oldest first: one of these failed, if it was not something older. */
  readonly queued: readonly string[]

  constructor(options: {
    status: number
    statusName: string
    call: string
    about: string
    queued?: readonly string[]
  }) {
    const { status, statusName, call, about } = options
    const contextLost = CONTEXT_LOST.has(status)
    const queued = contextLost ? (options.queued ?? []) : []
    const late = queued.length > 0 ? ` Queued before it: ${queued.join(', ')}.` : ''
    const hint = HINTS[statusName] ?? (contextLost ? LOST : 'See the CUDA driver API reference for this status.')
    super({
      code: 'cuda',
      fact: `${call}(${about}) failed with ${statusName} (${status}).${late}`,
      hint: contextLost ? `${hint} ${BLOCKING}` : hint,
    })
    this.status = status
    this.statusName = statusName
    this.call = call
    this.contextLost = contextLost
    this.queued = queued
  }
}

const LOST = 'A kernel failed. The context is lost; start a new process.'
const BLOCKING = 'With CUDA_LAUNCH_BLOCKING=1 in the environment the launch that fails throws by itself.'

const HINTS: Record<string, string> = {
  CUDA_ERROR_OUT_OF_MEMORY: 'Free device memory, make the cache smaller, or pick another device.',
  CUDA_ERROR_NO_DEVICE: 'Check that nvidia-smi lists a device and that CUDA_VISIBLE_DEVICES does not hide it.',
  CUDA_ERROR_INVALID_DEVICE: 'Use an ordinal below the number of devices that probe() lists.',
  CUDA_ERROR_NO_BINARY_FOR_GPU:
    'The kernel was compiled for another architecture; probe() says which kernels fit this device.',
  CUDA_ERROR_UNSUPPORTED_PTX_VERSION: 'Update the NVIDIA driver: it is older than the PTX of this package.',
  CUDA_ERROR_ILLEGAL_ADDRESS:
    'A kernel read or wrote outside an allocation: check block tables, lengths and slots. The context is lost; start a new process.',
  CUDA_ERROR_INVALID_IMAGE: 'The compiled kernel is damaged: reinstall @flashmla/cuda.',
  CUDA_ERROR_INVALID_CONTEXT: 'Another library set a context of its own: call makeCurrent() of the Context after it.',
  CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: 'End the capture, or move this call out of what is captured.',
  CUDA_ERROR_STREAM_CAPTURE_INVALIDATED: 'An earlier call broke the capture; end it and capture again.',
}
