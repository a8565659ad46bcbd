import { absorbKvB } from '@flashmla/latent'
import type { Backend, Tensor, Weight } from '@flashmla/spec'
import type { Checkpoint } from './checkpoint/checkpoint'

/** Takes a model's tensors by name and shape, in the order in which the graph wants them. */
export interface WeightReader {
  weight(name: string, ...shape: number[]): Promise<Weight>
  vector(name: string, size: number): Promise<Tensor<'f32'>>
  /** W_UK `[h, rank, nope]` and W_UV `[h, v, rank]` of kv_b_proj `[h · (nope + v), rank]`. */
  absorbed(name: string, h: number, nope: number, v: number, rank: number): Promise<{ uk: Weight; uv: Weight }>
}

/** Looks every tensor up and compares its shape; what it returns stands for nothing and is never used. */
export class CheckingReader implements WeightReader {
  /** Tensors asked for. */
  count = 0

  constructor(private readonly checkpoint: Checkpoint) {}

  async weight(name: string, ...shape: number[]): Promise<never> {
    this.checkpoint.source(name, shape)
    this.count++
    return undefined as never
  }

  vector(name: string, size: number): Promise<never> {
    return this.weight(name, size)
  }

  absorbed(name: string, h: number, nope: number, v: number, rank: number): Promise<never> {
    return this.weight(name, h * (nope + v), rank)
  }
}

/** Reads into a backend's memory. */
export class BackendReader implements WeightReader {
  /** Everything made so far, for whoever disposes of it. */
  readonly owned: { dispose(): void }[] = []
  #done = 0

  constructor(
    private readonly checkpoint: Checkpoint,
    private readonly backend: Backend,
    private readonly progress: (done: number) => void,
  ) {}

  async weight(name: string, ...shape: number[]): Promise<Weight> {
    const weight = this.#own(await this.backend.weight(this.checkpoint.source(name, shape)))
    this.progress(++this.#done)
    return weight
  }

  async vector(name: string, size: number): Promise<Tensor<'f32'>> {
    const data = await this.checkpoint.read(name, [size])
    const tensor = this.#own(this.backend.tensor('f32', [size]))
    this.backend.write(tensor, data)
    this.progress(++this.#done)
    return tensor
  }

  async absorbed(name: string, h: number, nope: number, v: number, rank: number): Promise<{ uk: Weight; uv: Weight }> {
    const kvB = await this.checkpoint.read(name, [h * (nope + v), rank])
    const { uk, uv } = absorbKvB(kvB, h, nope, v, rank)
    const result = {
      uk: await this.#computed(`${name}, W_UK`, uk, [h, rank, nope]),
      uv: await this.#computed(`${name}, W_UV`, uv, [h, v, rank]),
    }
    this.progress(++this.#done)
    return result
  }

  async #computed(name: string, data: Float32Array, shape: readonly number[]): Promise<Weight> {
    const words = upperHalves(data)
    const values = words ?? data
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength)
    const dtype = words ? 'bf16' : 'f32'
    return this.#own(await this.backend.weight({ name, dtype, shape, read: async (target) => target.set(bytes) }))
  }

  #own<T extends { dispose(): void }>(resource: T): T {
    this.owned.push(resource)
    return resource
  }
}

/** The values as bf16, where that loses nothing. */
function upperHalves(data: Float32Array): Uint16Array | undefined {
  const words = new Uint32Array(data.buffer, data.byteOffset, data.length)
  const halves = new Uint16Array(data.length)
  for (let i = 0; i < words.length; i++) {
    const word = words[i]!
    if ((word & 0xffff) !== 0) return undefined
    halves[i] = word >>> 16
  }
  return halves
}
