import { InvalidArgumentError } from '@flashmla/spec'
import type { Context } from './context'
import { bytesOf } from './driver'
import { Resource } from './resource'
import type { Stream } from './stream'

function checkBytes(bytes: number): number {
  if (Number.isSafeInteger(bytes) && bytes > 0) return bytes
  throw new InvalidArgumentError(`${bytes} bytes can't be allocated.`, 'Give a whole number of bytes, 1 or more.')
}

/** Device memory of the stream-ordered pool: usable by what the stream runs next, freed in the stream's order. */
export class DeviceMemory extends Resource {
  readonly context: Context
  readonly bytes: number
  readonly #stream: Stream
  readonly #address: bigint
  readonly #whole: DeviceMemory | undefined

  /**
   * With `part`, bytes of another memory from an offset on instead: it goes with that memory, and disposing of it frees nothing.
   * @throws InvalidArgumentError, CudaError (out of memory)
   */
  constructor(stream: Stream, bytes: number, part?: { readonly of: DeviceMemory; readonly offset: number }) {
    const { context } = stream
    super(context.driver, `${checkBytes(bytes)} bytes of memory of device ${context.device.ordinal}`, [context.held])
    this.context = context
    this.bytes = bytes
    this.#stream = stream
    this.#whole = part?.of
    if (part) {
      context.demand(part.of, 'The whole memory')
      if (!Number.isSafeInteger(part.offset) || part.offset < 0 || part.offset + bytes > part.of.bytes)
        throw new InvalidArgumentError(
          `Bytes ${part.offset} to ${part.offset + bytes} lie outside a memory of ${part.of.bytes}.`,
          'Name a part of the memory.',
        )
      this.#address = part.of.address + BigInt(part.offset)
      return
    }
    this.#address = context.create('cuMemAllocAsync', bytes, stream.handle)
    this.hold()
  }

  /** CUdeviceptr. @throws DisposedError */
  get address(): bigint {
    this.alive()
    if (this.#whole) void this.#whole.address
    else this.context.captured?.add(this)
    return this.#address
  }

  // A disposed stream has waited for its work: the default stream is in order then.
  protected release(): void {
    if (this.#whole) return
    this.context.giveBack('cuMemFreeAsync', this.#address, this.#stream.disposed ? 0n : this.#stream.handle)
  }
}

/** Page-locked host memory: copies between it and a device overlap with other work. Written and read by copy, so nothing outlives it. */
export class PinnedMemory extends Resource {
  readonly context: Context
  readonly byteLength: number
  readonly #address: bigint
  readonly #view: Uint8Array

  /** @throws InvalidArgumentError, CudaError */
  constructor(context: Context, bytes: number) {
    super(context.driver, `${checkBytes(bytes)} bytes of pinned host memory`, [context.held])
    this.context = context
    this.byteLength = bytes
    this.#address = context.create('cuMemHostAlloc', bytes, 0)
    this.#view = new Uint8Array(context.driver.api.view(this.#address, bytes))
    this.hold()
  }

  /** @internal The memory itself, which must not be kept: it dangles once the memory is disposed of. */
  get view(): Uint8Array {
    this.alive()
    return this.#view
  }

  /** Copies host values in, at a byte offset. No copy to a device may be under way from there. */
  write(source: ArrayBufferView, offset = 0): void {
    this.view.subarray(...this.#range(offset, source.byteLength)).set(bytesOf(source))
  }

  /** Copies bytes from an offset out into host values. */
  read(target: ArrayBufferView, offset = 0): void {
    bytesOf(target).set(this.view.subarray(...this.#range(offset, target.byteLength)))
  }

  #range(offset: number, bytes: number): [number, number] {
    if (Number.isSafeInteger(offset) && offset >= 0 && offset + bytes <= this.byteLength)
      return [offset, offset + bytes]
    throw new InvalidArgumentError(
      `Bytes ${offset} to ${offset + bytes} lie outside ${this.byteLength} bytes of pinned memory.`,
      'Nothing was copied. Give an offset and a length inside the memory.',
    )
  }

  /** Waits for the context's work: a copy may still use it. */
  protected release(): void {
    this.context.giveBack('cuCtxSynchronize')
    this.context.giveBack('cuMemFreeHost', this.#address)
  }
}
