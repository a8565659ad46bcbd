import { InvalidArgumentError } from '@flashmla/spec'
import { Launch } from '../driver/launch'
import type { DeviceMemory } from '../driver/memory'
import type { Stream } from '../driver/stream'
import type { KernelLibrary } from '../kernels/library'
import { CACHE_FORMATS, DTYPES, MlaAppendParams, MlaCastParams } from '../kernels/params'
import { QK_WIDTH, VALUE_WIDTH } from './shape'

const ROTARY_PAIRS = 32
const BYTES_PER_TOKEN = { bf16: 1152, f16: 1152, fp8: 656 } as const

export interface AppendTensors {
  /** `[n, 576]`: 512 compressed values, 64 rotary. */
  readonly latent: DeviceMemory
  readonly latentDtype: 'f32' | 'bf16'
  readonly n: number
  /** RMSNorm of the compressed values, weight `[512]` float32; without it they are normed already. */
  readonly norm?: { readonly weight: DeviceMemory; readonly eps: number }
  /** Angles `[maxPositions, 32, 2]` (cos, sin) float32 and positions `[n]` int32; without it rotated already. */
  readonly rotary?: { readonly table: DeviceMemory; readonly positions: DeviceMemory; readonly interleaved: boolean }
  /** `[n]` int32: block · pageSize + offset; −1 writes nothing. */
  readonly slots: DeviceMemory
  /** `[numBlocks, pageSize]` rows of the format, contiguous. */
  readonly cache: DeviceMemory
  readonly format: keyof typeof CACHE_FORMATS
  readonly pageSize: number
}

/**
 * Queues the writing of latent rows into their slots: norm, rotary and encoding in one kernel, the bytes those of the host codec.
 * @throws InvalidArgumentError when a memory is too small, UnsupportedError without a kernel for the device, CudaError
 */
export function append(library: KernelLibrary, stream: Stream, tensors: AppendTensors): void {
  const { latent, latentDtype, n, norm, rotary, slots, cache, format, pageSize } = tensors
  if (!Number.isInteger(n) || n < 0 || !Number.isInteger(pageSize) || pageSize < 1)
    throw new InvalidArgumentError(`n is ${n} and pageSize ${pageSize}.`, 'Give n ≥ 0 rows and pages of 1 or more.')
  if (!(format in BYTES_PER_TOKEN) || !['f32', 'bf16'].includes(latentDtype) || !Number.isFinite(norm?.eps ?? 0))
    throw new InvalidArgumentError(
      `Rows of ${latentDtype} can't be appended as ${format}${norm ? ` with eps ${norm.eps}` : ''}.`,
      `Take f32 or bf16 rows, a format of ${Object.keys(BYTES_PER_TOKEN).join(', ')}, and a finite eps.`,
    )
  const needs: [string, DeviceMemory | undefined, number][] = [
    ['latent', latent, n * QK_WIDTH * (latentDtype === 'f32' ? 4 : 2)],
    ['norm.weight', norm?.weight, VALUE_WIDTH * 4],
    ['rotary.table', rotary?.table, ROTARY_PAIRS * 8],
    ['rotary.positions', rotary?.positions, n * 4],
    ['slots', slots, n * 4],
    ['cache', cache, pageSize * BYTES_PER_TOKEN[format]],
  ]
  for (const [name, memory, bytes] of needs) {
    if (memory && (memory.bytes < bytes || memory.context !== stream.context))
      throw new InvalidArgumentError(
        `${name} has ${memory.bytes} bytes on device ${memory.context.device.ordinal}; ${bytes} are needed on device ${stream.context.device.ordinal}.`,
        `Allocate it for n = ${n} rows in the stream's context.`,
      )
  }
  if (n === 0) return
  const parameters = MlaAppendParams.allocate({
    latent: latent.address,
    norm_weight: norm?.weight.address ?? null,
    rotary_table: rotary?.table.address ?? null,
    positions: rotary?.positions.address ?? null,
    slots: slots.address,
    cache: cache.address,
    cache_page_stride: pageSize * BYTES_PER_TOKEN[format],
    cache_row_stride: BYTES_PER_TOKEN[format],
    norm_eps: norm?.eps ?? 0,
    n,
    page_size: pageSize,
    latent_dtype: DTYPES[latentDtype],
    interleaved: rotary?.interleaved ? 1 : 0,
    format: CACHE_FORMATS[format],
  })
  const { threads } = library.entry('mla_append')
  new Launch({ kernel: library.kernel('mla_append'), grid: [n, 1], threads, parameters: [parameters] }).on(stream)
}

/** Values that one block of mla_cast takes. */
const CAST_BLOCK = 1024

/**
 * Queues the rounding of n float32 values to a 16-bit type, to the nearest, ties to even.
 * @throws InvalidArgumentError when n is no multiple of 4 or a memory is too small, UnsupportedError without a kernel, CudaError
 */
export function cast(
  library: KernelLibrary,
  stream: Stream,
  tensors: {
    readonly source: DeviceMemory
    readonly target: DeviceMemory
    readonly n: number
    readonly dtype: 'bf16' | 'f16'
  },
): void {
  const { source, target, n, dtype } = tensors
  const fits = [source, target].every(({ context }) => context === stream.context)
  if (!Number.isSafeInteger(n) || n < 0 || n % 4 !== 0 || !fits || source.bytes < n * 4 || target.bytes < n * 2)
    throw new InvalidArgumentError(
      `${n} values can't be cast from ${source.bytes} to ${target.bytes} bytes.`,
      "Give a multiple of 4, and memory of 4 and 2 bytes a value in the stream's context.",
    )
  if (n === 0) return
  const values = { source: source.address, target: target.address, n, target_dtype: DTYPES[dtype], reserved: 0 }
  const { threads } = library.entry('mla_cast')
  const grid = [Math.ceil(n / CAST_BLOCK), 1] as const
  const parameters = [MlaCastParams.allocate(values)]
  new Launch({ kernel: library.kernel('mla_cast'), grid, threads, parameters }).on(stream)
}
