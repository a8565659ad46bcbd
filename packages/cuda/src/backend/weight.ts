import type { Weight, WeightSource } from '@flashmla/spec'
import { DisposedError, InvalidArgumentError, sizeOf } from '@flashmla/spec'
import { upload } from '../driver/copy'
import type { DeviceMemory } from '../driver/memory'
import { encodeTensorMap } from '../driver/tensor-map'
import { MlaConvertParams, VALUE_TYPES } from '../kernels/model-params'
import type { BackendDevice } from './device'
import type { ProductKernel } from './linear'

/** `checkpoint` loses nothing: bf16 stays bf16, f32 and f16 become f32. */
export type WeightPrecision = 'checkpoint' | 'bf16' | 'f32'

const BYTES = { f32: 4, bf16: 2, f16: 2 } as const
/** Of a tensor map in device memory. */
const MAP_BYTES = 128
const MAP_ALIGNMENT = 64

/** Matrix or stack of matrices in device memory, row-major. */
export class CudaWeight implements Weight {
  readonly #memory: DeviceMemory
  readonly #address: bigint
  readonly #followers = new Set<() => void>()
  /** Where device memory has a tensor map of the rows, in boxes of 64 x 64: bf16 on Hopper, in rows of whole 16 bytes. */
  readonly map: bigint | undefined
  /** What a product with it took last, and one that it gates. */
  kernel: ProductKernel | undefined
  gatedKernel: ProductKernel | undefined

  private constructor(
    readonly device: BackendDevice,
    readonly shape: readonly number[],
    readonly dtype: 'f32' | 'bf16',
    memory: DeviceMemory,
    mapAt: number | undefined,
  ) {
    this.#memory = memory
    this.#address = memory.address
    this.map = mapAt === undefined ? undefined : memory.address + BigInt(mapAt)
  }

  /** Reads a source and keeps it in the precision asked for. Rejects with what the source throws, CudaError. */
  static async read(device: BackendDevice, source: WeightSource, precision: WeightPrecision): Promise<CudaWeight> {
    const size = sizeOf(source.shape)
    const bytes = new Uint8Array(size * BYTES[source.dtype])
    await source.read(bytes)
    device.eager(`Reading the weight ${source.name}`)
    const dtype = precision === 'checkpoint' ? (source.dtype === 'bf16' ? 'bf16' : 'f32') : precision
    const i = source.shape.at(-1)!
    const mapped = device.library.target === 'sm_90a' && dtype === 'bf16' && i % 8 === 0 && size > 0
    const mapAt = mapped ? Math.ceil((size * BYTES[dtype]) / MAP_ALIGNMENT) * MAP_ALIGNMENT : undefined
    const memory = device.allocate(mapAt === undefined ? size * BYTES[dtype] : mapAt + MAP_BYTES)
    if (mapAt !== undefined) {
      const rows = { dims: [i, size / i], strides: [i * BYTES[dtype]], box: [64, 64] }
      const map = encodeTensorMap(device.context, { dtype: 'bf16', address: memory.address, ...rows })
      upload(device.stream, memory, map, mapAt)
    }
    if (source.dtype === dtype) {
      upload(device.stream, memory, bytes)
      return new CudaWeight(device, source.shape, dtype, memory, mapAt)
    }
    let raw: DeviceMemory
    try {
      raw = device.allocate(bytes.length)
    } catch (error) {
      device.free(memory) // a caller that goes on with less must not pay for this one
      throw error
    }
    upload(device.stream, raw, bytes)
    device.run('mla_convert', MlaConvertParams, [Math.ceil(size / 1024), 1], {
      source: raw.address,
      target: memory.address,
      n: size,
      source_dtype: VALUE_TYPES[source.dtype],
      target_dtype: VALUE_TYPES[dtype],
    })
    device.free(raw)
    return new CudaWeight(device, source.shape, dtype, memory, mapAt)
  }

  /** @throws DisposedError */
  get address(): bigint {
    if (this.#memory.disposed) throw new DisposedError(`A weight [${this.shape}]`)
    this.device.context.captured?.add(this.#memory)
    return this.#address
  }

  /** FlashMlaValueType of the elements. */
  get code(): number {
    return VALUE_TYPES[this.dtype]
  }

  /** Calls `follow` once the weight is disposed of. */
  onDispose(follow: () => void): void {
    this.#followers.add(follow)
  }

  dispose(): void {
    this.device.free(this.#memory)
    for (const follow of this.#followers) follow()
    this.#followers.clear()
  }
}

/** The backend's own weight behind the interface. @throws InvalidArgumentError for another backend's */
export function ownWeight(device: BackendDevice, weight: Weight): CudaWeight {
  device.alive()
  if (weight instanceof CudaWeight && weight.device === device) return weight
  throw new InvalidArgumentError(
    `A weight [${weight.shape}] belongs to another backend.`,
    'Read the weights of an operation with the backend that runs it.',
  )
}
