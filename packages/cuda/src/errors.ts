import { FlashMlaError, UnsupportedError } from '@flashmla/spec'

/** The driver can't be used on this machine: no driver library, one that is too old, or no device. A caller may fall back. */
export class CudaUnavailableError extends UnsupportedError {
  constructor(fact: string, hint: string, cause?: unknown) {
    super(fact, hint)
    if (cause !== undefined) this.cause = cause
  }
}

/** A driver call returned a status other than success. Work queued after a sticky error (an illegal address, say) is lost. */
export class CudaError extends FlashMlaError {
  /** CUresult. */
  readonly status: number
  /** Name of the status, such as `CUDA_ERROR_OUT_OF_MEMORY`. */
  readonly statusName: string
  /** Driver function that returned it. */
  readonly call: string

  constructor(options: { status: number; statusName: string; call: string; about: string }) {
    const { status, statusName, call, about } = options
    super({
      code: 'cuda',
      fact: `${call}(${about}) failed with ${statusName} (${status}).`,
      hint: HINTS[statusName] ?? 'See the CUDA driver API reference for what this status means for the call.',
    })
    this.status = status
    this.statusName = statusName
    this.call = call
  }
}

const HINTS: Record<string, string> = {
  CUDA_ERROR_OUT_OF_MEMORY: 'Free device memory, make the cache smaller, or pick another device.',
  CUDA_ERROR_NO_DEVICE: 'Check that nvidia-smi lists a device and that CUDA_VISIBLE_DEVICES does not hide it.',
  CUDA_ERROR_INVALID_DEVICE: 'Use an ordinal below the number of devices that probe() lists.',
  CUDA_ERROR_NO_BINARY_FOR_GPU:
    'The kernel was compiled for another architecture; probe() says which kernels fit this device.',
  CUDA_ERROR_UNSUPPORTED_PTX_VERSION: 'Update the NVIDIA driver: it is older than the PTX of this package.',
  CUDA_ERROR_ILLEGAL_ADDRESS:
    'A kernel read or wrote outside an allocation: check block tables, lengths and slots. The context is lost; start a new process.',
  CUDA_ERROR_LAUNCH_FAILED: 'A kernel failed. The context is lost; start a new process.',
  CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: 'End the capture, or move this call out of what is captured.',
  CUDA_ERROR_STREAM_CAPTURE_INVALIDATED: 'An earlier call broke the capture; end it and capture again.',
}
