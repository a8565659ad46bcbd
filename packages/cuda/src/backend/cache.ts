import type { CacheFormat, PagedCache } from '@flashmla/spec'
import { DisposedError, InvalidArgumentError, UnsupportedError } from '@flashmla/spec'
import { copy, fill } from '../driver/copy'
import type { DeviceMemory } from '../driver/memory'
import { ROW_FORMATS, type RowFormat } from '../kernels/model-params'
import type { BackendDevice } from './device'

/** A format's code on the device, by its name and size. @throws UnsupportedError for a format without kernels */
export function rowFormat({ name, kvLoraRank, ropeDim, bytesPerToken }: CacheFormat): RowFormat {
  const width = kvLoraRank + ropeDim
  if (name === `f32-${width}` && bytesPerToken === width * 4) return 'f32'
  if (name === `bf16-${width}` && bytesPerToken === width * 2) return 'bf16'
  if (name === 'fp8-656' && bytesPerToken === 656) return 'fp8V32'
  if (name === 'fp8-584' && bytesPerToken === 584) return 'fp8V4'
  throw new UnsupportedError(
    `Cache format ${name} (${bytesPerToken} bytes a token) has no CUDA kernel.`,
    'Use a format of @flashmla/latent, or the reference backend.',
  )
}

/** Paged cache in device memory: `[numBlocks]` pages of `pageSize · bytesPerToken` bytes, zeros at first. */
export class CudaCache implements PagedCache {
  readonly rowFormat: RowFormat
  readonly pageBytes: number
  readonly #memory: DeviceMemory
  #disposed = false

  /** @throws InvalidArgumentError, UnsupportedError, CudaError when there is too little memory */
  constructor(
    readonly device: BackendDevice,
    readonly format: CacheFormat,
    readonly numBlocks: number,
    readonly pageSize: number,
  ) {
    for (const [name, value] of Object.entries({ numBlocks, pageSize })) {
      if (Number.isInteger(value) && value >= 1 && value < 2 ** 31) continue
      throw new InvalidArgumentError(`${name} is ${value}.`, 'Give a whole number ≥ 1.')
    }
    this.rowFormat = rowFormat(format)
    this.pageBytes = pageSize * format.bytesPerToken
    this.#memory = device.allocate(numBlocks * this.pageBytes)
    fill(device.stream, this.#memory, 0)
  }

  /** @throws DisposedError */
  get memory(): DeviceMemory {
    if (this.#disposed || this.#memory.disposed) throw new DisposedError('A cache')
    return this.#memory
  }

  get address(): bigint {
    return this.memory.address
  }

  /** FlashMlaRowFormat of the rows. */
  get code(): number {
    return ROW_FORMATS[this.rowFormat]
  }

  /** Whether rows start at multiples of 16 bytes, so that they may be read 16 bytes at a time. */
  get vector(): boolean {
    return this.format.bytesPerToken % 16 === 0
  }

  /** Queues copies of slots [0, slots) of a block: one for each stretch of bytes that the format keeps together. */
  copyBlock(from: number, to: number, slots: number): void {
    const { memory, device, pageSize, pageBytes } = this
    if (from === to || device.mode === 'plan') return
    const stretches: { offset: number; length: number }[] = []
    for (let slot = 0; slot < slots; slot++) {
      for (const { offset, length } of this.format.byteRanges(pageSize, slot)) {
        const before = stretches.find((stretch) => stretch.offset + stretch.length === offset)
        if (before) before.length += length
        else stretches.push({ offset, length })
      }
    }
    if (device.mode === 'run') device.eager('A copy')
    for (const { offset, length } of stretches) {
      copy(device.stream, memory, memory, {
        bytes: length,
        sourceOffset: from * pageBytes + offset,
        targetOffset: to * pageBytes + offset,
      })
    }
  }

  dispose(): void {
    this.device.free(this.#memory)
    this.#disposed = true
  }
}

/** The backend's own cache behind the interface. @throws InvalidArgumentError for another backend's */
export function ownCache(device: BackendDevice, cache: PagedCache): CudaCache {
  device.alive()
  if (cache instanceof CudaCache && cache.device === device) return cache
  throw new InvalidArgumentError(
    `A cache of format ${cache.format.name} belongs to another backend.`,
    'Make the caches of an operation with the backend that runs it.',
  )
}
