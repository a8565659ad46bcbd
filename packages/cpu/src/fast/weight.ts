import type { Weight, WeightSource } from '@flashmla/spec'
import { DisposedError, sizeOf, UnsupportedError } from '@flashmla/spec'
import type { SharedHeap } from './heap'
import type { Kernels } from './pool'
import { maxWeightColumns } from './pool'

/** How weights are kept: as the checkpoint has them (f16 as float32), or converted. */
export type WeightPrecision = 'checkpoint' | 'f32' | 'bf16' | 'q8'

/** What 8-bit quantization did to one weight. */
export interface QuantizationError {
  readonly name: string
  /** ‖x − x̂‖₂ / ‖x‖₂ */
  readonly relative: number
  /** max |x − x̂| */
  readonly largest: number
}

/** Codes of wasm/matrix.h and gemm.c. */
const stored = { f32: 0, bf16: 1, q8: 2 } as const
const sources = { f32: 0, bf16: 1, f16: 2 } as const
/** A Matrix: dtype, data, scales, o, i, packed. */
export const MATRIX_WORDS = 6
/** Rows of a panel, of wasm/matrix.h. */
const PANEL = 8

/** Matrix or stack of matrices `[…, o, i]` in shared memory; the stack is one tall matrix. */
export class FastWeight implements Weight {
  #live = true

  private constructor(
    readonly heap: SharedHeap,
    readonly shape: readonly number[],
    readonly precision: 'f32' | 'bf16' | 'q8',
    readonly o: number,
    readonly i: number,
    private readonly descriptorAddress: number,
    private readonly blocks: readonly (readonly [address: number, bytes: number])[],
  ) {}

  /** Reads a source straight into shared memory; conversions other than to q8 happen in place. */
  static async read(
    heap: SharedHeap,
    kernels: Kernels,
    source: WeightSource,
    wanted: WeightPrecision,
    report: (error: QuantizationError) => void,
  ): Promise<FastWeight> {
    const size = sizeOf(source.shape)
    const i = source.shape.at(-1) ?? 1
    const o = i === 0 ? 0 : size / i
    if (i > maxWeightColumns)
      throw new UnsupportedError(
        `Weight ${source.name} has ${i} columns; the kernels take ${maxWeightColumns}.`,
        'Use the reference backend for this model.',
      )
    const precision = wanted === 'checkpoint' ? (source.dtype === 'bf16' ? 'bf16' : 'f32') : wanted
    const sourceBytes = size * (source.dtype === 'f32' ? 4 : 2)
    // A stack is packed matrix by matrix, which is the same where each has whole panels.
    const rows = source.shape.length > 1 ? source.shape.at(-2)! : 1
    const packed = precision !== 'q8' && i % 8 === 0 && o >= PANEL && (rows % PANEL === 0 || rows === o)
    const blocks: [number, number][] = []
    const take = (bytes: number) => {
      const address = heap.allocate(bytes)
      blocks.push([address, bytes])
      return address
    }
    // All blocks are taken before the read: commands that are recorded meanwhile may still use what is free after it.
    const descriptor = take(MATRIX_WORDS * 4)
    const rowBytes = i * (precision === 'bf16' ? 2 : 4)
    const space = packed ? heap.allocate(PANEL * rowBytes) : 0
    const fill = (address: number) => source.read(new Uint8Array(heap.memory.buffer, address, sourceBytes))
    let scales = 0
    let data: number
    try {
      if (precision === 'q8') {
        const perRow = Math.ceil(i / 32)
        data = take(o * perRow * 32)
        scales = take(o * perRow * 4)
        const staging = heap.allocate(sourceBytes + 64)
        try {
          await fill(staging)
          const result = staging + Math.ceil(sourceBytes / 8) * 8
          heap.u8.fill(0, result, result + 24)
          kernels.toQ8Rows(data, scales, staging, sources[source.dtype], o, i, result)
          const [error, total, largest] = new Float64Array(heap.memory.buffer, result, 3)
          report({ name: source.name, relative: total! > 0 ? Math.sqrt(error! / total!) : 0, largest: largest! })
        } finally {
          heap.release(staging, sourceBytes + 64)
        }
      } else if (precision === 'bf16') {
        if (source.dtype === 'f32') {
          const staging = heap.allocate(sourceBytes)
          data = take(size * 2)
          try {
            await fill(staging)
            kernels.toBf16Rows(data, staging, sources.f32, o, i)
          } finally {
            heap.release(staging, sourceBytes)
          }
        } else {
          data = take(size * 2)
          await fill(data)
          kernels.toBf16Rows(data, data, sources[source.dtype], o, i)
        }
      } else {
        data = take(size * 4)
        const start = data + size * 4 - sourceBytes
        await fill(start)
        if (source.dtype !== 'f32') kernels.widen(data, start, sources[source.dtype], size)
      }
      if (packed) kernels.packRows(data, space, o, rowBytes / 16)
    } catch (error) {
      for (const [address, bytes] of blocks) heap.release(address, bytes)
      throw error
    } finally {
      if (packed) heap.release(space, PANEL * rowBytes)
    }
    heap.i32.set([stored[precision], data, scales, o, i, packed ? 1 : 0], descriptor / 4)
    return new FastWeight(heap, source.shape, precision, o, i, descriptor, blocks)
  }

  /** Address of the Matrix that kernels read. @throws DisposedError */
  get descriptor(): number {
    if (!this.#live) throw new DisposedError(`A weight [${this.shape}]`)
    return this.descriptorAddress
  }

  /** Its memory is free once the commands that were recorded before have run. */
  dispose(): void {
    if (!this.#live) return
    this.#live = false
    for (const [address, bytes] of this.blocks) this.heap.retire(address, bytes)
  }
}
