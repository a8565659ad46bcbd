import { bf16ToFloat, halfToFloat } from '@flashmla/latent'
import type { DType, HostArray, Tensor, Weight, WeightSource } from '@flashmla/spec'
import { DisposedError, InvalidArgumentError, sizeOf } from '@flashmla/spec'

/** Tensor of the CPU backends: a typed array. */
export class CpuTensor<D extends DType = DType> implements Tensor<D> {
  #data: HostArray<D> | undefined
  readonly #parent: CpuTensor<D> | undefined

  constructor(
    readonly dtype: D,
    readonly shape: readonly number[],
    memory?: HostArray<D>,
    parent?: CpuTensor<D>,
  ) {
    const size = sizeOf(shape)
    if (!shape.every((dim) => Number.isInteger(dim) && dim >= 0) || !Number.isSafeInteger(size)) {
      throw new InvalidArgumentError(`Shape [${shape}] has no size.`, 'Give whole dimensions ≥ 0.')
    }
    this.#parent = parent
    this.#data = memory ?? ((dtype === 'f32' ? new Float32Array(size) : new Int32Array(size)) as HostArray<D>)
  }

  get data(): HostArray<D> {
    if (!this.#data || this.#parent?.disposed) throw new DisposedError(`A tensor [${this.shape}]`)
    return this.#data
  }

  /** True as soon as the tensor, or the one it is a view of, is gone. */
  get disposed(): boolean {
    return this.#data === undefined || this.#parent?.disposed === true
  }

  /** @throws InvalidArgumentError when the shape doesn't fit the elements from `offset` on */
  view(shape: readonly number[], offset: number): CpuTensor<D> {
    const size = sizeOf(shape)
    if (!(Number.isInteger(offset) && offset >= 0 && offset + size <= this.data.length)) {
      throw new InvalidArgumentError(
        `A view [${shape}] at ${offset} doesn't fit a tensor [${this.shape}].`,
        'View inside the tensor.',
      )
    }
    return new CpuTensor(this.dtype, shape, this.data.subarray(offset, offset + size) as HostArray<D>, this)
  }

  dispose(): void {
    this.#data = undefined
  }
}

/** Weight of the reference: float32, whatever the source's dtype. */
export class CpuWeight implements Weight {
  #data: Float32Array | undefined

  private constructor(
    readonly shape: readonly number[],
    data: Float32Array,
  ) {
    this.#data = data
  }

  static async read(source: WeightSource): Promise<CpuWeight> {
    const size = sizeOf(source.shape)
    const bytes = new Uint8Array(size * (source.dtype === 'f32' ? 4 : 2))
    await source.read(bytes)
    if (source.dtype === 'f32') return new CpuWeight(source.shape, new Float32Array(bytes.buffer))
    const toFloat = source.dtype === 'bf16' ? bf16ToFloat : halfToFloat
    return new CpuWeight(source.shape, Float32Array.from(new Uint16Array(bytes.buffer), toFloat))
  }

  get data(): Float32Array {
    if (!this.#data) throw new DisposedError(`A weight [${this.shape}]`)
    return this.#data
  }

  dispose(): void {
    this.#data = undefined
  }
}

export function f32(tensor: Tensor<'f32'>): Float32Array {
  return (tensor as CpuTensor<'f32'>).data
}

export function w32(weight: Weight): Float32Array {
  return (weight as CpuWeight).data
}

export function i32(tensor: Tensor<'i32'>): Int32Array {
  return (tensor as CpuTensor<'i32'>).data
}
