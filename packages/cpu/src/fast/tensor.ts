import type { DType, HostArray, Tensor } from '@flashmla/spec'
import { DisposedError, InvalidArgumentError, sizeOf } from '@flashmla/spec'
import type { SharedHeap } from './heap'

/** Tensor of the fast backend: an address in its shared memory. */
export class FastTensor<D extends DType = DType> implements Tensor<D> {
  readonly size: number
  #address: number
  readonly #parent: FastTensor<D> | undefined

  constructor(
    readonly heap: SharedHeap,
    readonly dtype: D,
    readonly shape: readonly number[],
    parent?: FastTensor<D>,
    offset = 0,
  ) {
    this.size = sizeOf(shape)
    if (!Number.isSafeInteger(this.size) || !shape.every((dim) => Number.isInteger(dim) && dim >= 0))
      throw new InvalidArgumentError(`Shape [${shape}] has no size.`, 'Give whole dimensions ≥ 0.')
    this.#parent = parent
    if (!parent) this.#address = heap.allocate(this.bytes)
    else {
      if (!(Number.isInteger(offset) && offset >= 0 && offset + this.size <= parent.size))
        throw new InvalidArgumentError(
          `A view [${shape}] at ${offset} doesn't fit a tensor [${parent.shape}].`,
          'View inside the tensor.',
        )
      this.#address = parent.address + offset * 4
    }
  }

  get bytes(): number {
    return this.size * 4
  }

  /** @throws DisposedError */
  get address(): number {
    if (this.#address < 0) throw new DisposedError(`A tensor [${this.shape}]`)
    if (this.#parent) void this.#parent.address
    return this.#address
  }

  /** The elements as a view on shared memory, valid until the memory grows. */
  get data(): HostArray<D> {
    const memory = this.dtype === 'f32' ? this.heap.f32 : this.heap.i32
    return memory.subarray(this.address / 4, this.address / 4 + this.size) as HostArray<D>
  }

  /** Commands recorded before run before any that reuses the memory, so it is free at once. */
  dispose(): void {
    if (this.#address >= 0 && !this.#parent) this.heap.release(this.#address, this.bytes)
    this.#address = -1
  }
}
