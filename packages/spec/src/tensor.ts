export type DType = 'f32' | 'i32'

export type HostArray<D extends DType = DType> = D extends 'f32' ? Float32Array : Int32Array

/** Memory of a backend. Opaque: only its backend reads the contents. */
export interface Tensor<D extends DType = DType> {
  readonly dtype: D
  /** Outermost dimension first, row-major, contiguous. */
  readonly shape: readonly number[]
  dispose(): void
}

/** A read-only matrix or stack of matrices in a backend's memory, in a precision of the backend's choice. */
export interface Weight {
  readonly shape: readonly number[]
  dispose(): void
}

/** Where a weight comes from. `read` fills the whole of `target`, little-endian, row-major. */
export interface WeightSource {
  readonly name: string
  readonly dtype: 'f32' | 'bf16' | 'f16'
  readonly shape: readonly number[]
  read(target: Uint8Array): Promise<void>
}

/** Number of elements of a shape. */
export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((size, dim) => size * dim, 1)
}
