import type { DType, Tensor } from '@flashmla/spec'
import { DisposedError, InvalidArgumentError, sizeOf } from '@flashmla/spec'
import type { DeviceMemory } from '../driver/memory'
import type { BackendDevice } from './device'

const BYTES = 4

/** Tensor of the CUDA backend: device memory of its own, zeros at first, or a part of another tensor's. */
export class CudaTensor<D extends DType = DType> implements Tensor<D> {
  readonly size: number
  /** The whole memory, and where in it the tensor begins. */
  readonly memory: DeviceMemory
  readonly byteOffset: number
  readonly #address: bigint
  readonly #parent: CudaTensor<D> | undefined
  #disposed = false

  /** @throws InvalidArgumentError when the shape has no size or doesn't fit the parent, CudaError when there is too little memory */
  constructor(
    readonly device: BackendDevice,
    readonly dtype: D,
    readonly shape: readonly number[],
    parent?: CudaTensor<D>,
    offset = 0,
  ) {
    this.size = sizeOf(shape)
    if (!Number.isSafeInteger(this.size * BYTES) || !shape.every((dim) => Number.isInteger(dim) && dim >= 0))
      throw new InvalidArgumentError(`Shape [${shape}] has no size.`, 'Give whole dimensions ≥ 0.')
    if (parent) {
      void parent.address
      if (!(Number.isInteger(offset) && offset >= 0 && offset + this.size <= parent.size))
        throw new InvalidArgumentError(
          `A view [${shape}] at ${offset} doesn't fit a tensor [${parent.shape}].`,
          'View inside the tensor.',
        )
    }
    this.#parent = parent
    this.memory = parent ? parent.memory : device.allocate(this.bytes)
    this.byteOffset = parent ? parent.byteOffset + offset * BYTES : 0
    this.#address = this.memory.address + BigInt(this.byteOffset)
  }

  get bytes(): number {
    return this.size * BYTES
  }

  /** @throws DisposedError when the tensor, or the one it is a view of, is gone */
  get address(): bigint {
    if (this.#disposed || this.memory.disposed) throw new DisposedError(`A tensor [${this.shape}]`)
    if (this.#parent) void this.#parent.address
    else void this.memory.address // a capture notes it
    return this.#address
  }

  dispose(): void {
    if (this.#disposed) return
    if (!this.#parent) this.device.free(this.memory)
    this.#disposed = true
  }
}

/** Length of the last dimension, which operations go along. */
export function columnsOf({ shape }: { readonly shape: readonly number[] }): number {
  return shape.at(-1) ?? 1
}

/** Rows of a tensor whose leading dimensions are folded. */
export function rowsOf(tensor: CudaTensor): number {
  const columns = columnsOf(tensor)
  return columns === 0 ? 0 : tensor.size / columns
}

/** The backend's own tensor behind the interface. @throws InvalidArgumentError for another backend's */
export function own<D extends DType>(device: BackendDevice, tensor: Tensor<D>): CudaTensor<D> {
  device.alive()
  if (tensor instanceof CudaTensor && tensor.device === device) return tensor as CudaTensor<D>
  throw new InvalidArgumentError(
    `A tensor [${tensor.shape}] belongs to another backend.`,
    'Make the tensors of an operation with the backend that runs it.',
  )
}
