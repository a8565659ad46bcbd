export type DType = 'f32' | 'i32'

export type HostArray<D extends DType = DType> = D extends 'f32' ? Float32Array : Int32Array

/** Memory of a backend. Opaque: only its backend reads the contents. */
export interface Tensor<D extends DType = DType> {
  readonly dtype: D
  /** Outermost dimension first, row-major, contiguous. */
  readonly shape: readonly number[]
  dispose(): void
}

/** Number of elements of a shape. */
export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((size, dim) => size * dim, 1)
}
