import type { CacheFormat, DType, HostArray, PagedCache, Tensor } from '@flashmla/spec'
import { DisposedError, InvalidArgumentError, sizeOf } from '@flashmla/spec'

/** Tensor of the CPU backends: a typed array. */
export class CpuTensor<D extends DType = DType> implements Tensor<D> {
  #data: HostArray<D> | undefined

  constructor(
    readonly dtype: D,
    readonly shape: readonly number[],
  ) {
    const size = sizeOf(shape)
    if (!Number.isSafeInteger(size) || size < 0) {
      throw new InvalidArgumentError(`Shape [${shape}] has no size.`, 'Give whole dimensions ≥ 0.')
    }
    this.#data = (dtype === 'f32' ? new Float32Array(size) : new Int32Array(size)) as HostArray<D>
  }

  get data(): HostArray<D> {
    if (!this.#data) throw new DisposedError(`A tensor [${this.shape}]`)
    return this.#data
  }

  dispose(): void {
    this.#data = undefined
  }
}

/** Paged cache of the CPU backends: one byte array a page, made when the page is first written. */
export class CpuCache implements PagedCache {
  readonly #pages: (Uint8Array | undefined)[]

  constructor(
    readonly format: CacheFormat,
    readonly numBlocks: number,
    readonly pageSize: number,
  ) {
    this.#pages = new Array(numBlocks)
  }

  write(slot: number, source: Float32Array, offset: number): void {
    const block = Math.floor(slot / this.pageSize)
    if (block >= this.numBlocks) {
      throw new InvalidArgumentError(
        `Slot ${slot} is past the cache's ${this.numBlocks} pages.`,
        'Take slots from the block table.',
      )
    }
    this.#pages[block] ??= new Uint8Array(this.pageSize * this.format.bytesPerToken)
    this.format.encode(source, offset, this.#pages[block], this.pageSize, slot % this.pageSize)
  }

  read(block: number, offset: number, target: Float32Array, targetOffset: number): void {
    const page = this.#pages[block]
    if (!page)
      throw new InvalidArgumentError(`Page ${block} is read before it was written.`, 'Append before attending.')
    this.format.decode(page, this.pageSize, offset, target, targetOffset)
  }

  copy(from: number, to: number, slots: number): void {
    const row = new Float32Array(this.format.kvLoraRank + this.format.ropeDim)
    for (let slot = 0; slot < slots; slot++) {
      this.read(from, slot, row, 0)
      this.write(to * this.pageSize + slot, row, 0)
    }
  }

  dispose(): void {
    this.#pages.length = 0
  }
}

export function f32(tensor: Tensor<'f32'>): Float32Array {
  return (tensor as CpuTensor<'f32'>).data
}

export function i32(tensor: Tensor<'i32'>): Int32Array {
  return (tensor as CpuTensor<'i32'>).data
}
