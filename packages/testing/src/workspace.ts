import type { Backend, CacheFormat, DType, HostArray, Tensor, Weight, WeightSource } from '@flashmla/spec'
import { sizeOf } from '@flashmla/spec'
import type { Tolerance } from './compare'
import { assertClose } from './compare'

/** What a case works in: the backend, and short ways to fill and read its memory. All is disposed of after the case. */
export class Workspace {
  readonly #kept: { dispose(): void }[] = []

  constructor(
    readonly backend: Backend,
    readonly tolerance: Tolerance,
  ) {}

  f32(shape: readonly number[], data?: ArrayLike<number>): Tensor<'f32'> {
    return this.#filled('f32', shape, data && Float32Array.from(data))
  }

  /** An f32 tensor full of NaN: what an operation leaves unwritten shows. */
  poisoned(...shape: number[]): Tensor<'f32'> {
    return this.f32(shape, new Float32Array(sizeOf(shape)).fill(Number.NaN))
  }

  i32(shape: readonly number[], data?: ArrayLike<number>): Tensor<'i32'> {
    return this.#filled('i32', shape, data && Int32Array.from(data))
  }

  async weight(shape: readonly number[], data: Float32Array): Promise<Weight> {
    return this.keep(await this.backend.weight(sourceOf(shape, data)))
  }

  cache(format: CacheFormat, numBlocks: number, pageSize: number) {
    return this.keep(this.backend.cache(format, numBlocks, pageSize))
  }

  keep<T extends { dispose(): void }>(resource: T): T {
    this.#kept.push(resource)
    return resource
  }

  /** @throws ContractError where `tensor` isn't `expected` within the tolerance */
  async expectClose(what: string, tensor: Tensor<'f32'>, expected: ArrayLike<number>): Promise<void> {
    assertClose(what, await this.backend.read(tensor), expected, tensor.shape, this.tolerance)
  }

  dispose(): void {
    for (const resource of this.#kept.reverse()) resource.dispose()
  }

  #filled<D extends DType>(dtype: D, shape: readonly number[], data: HostArray<D> | undefined): Tensor<D> {
    const tensor = this.keep(this.backend.tensor(dtype, shape))
    if (data) this.backend.write(tensor, data)
    return tensor
  }
}

/** A float32 weight source over host memory. */
export function sourceOf(shape: readonly number[], data: Float32Array): WeightSource {
  return {
    name: 'contract',
    dtype: 'f32',
    shape,
    async read(target) {
      const view = new DataView(target.buffer, target.byteOffset, target.byteLength)
      data.forEach((value, i) => {
        view.setFloat32(4 * i, value, true)
      })
    },
  }
}
