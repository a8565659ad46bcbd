import { UnsupportedError } from '@flashmla/spec'
import type { WasmMemory } from './webassembly'
import { WebAssembly } from './webassembly'

const PAGE = 65536
const LIMIT = 65536 * PAGE

/** The one shared memory of a backend: 64-byte aligned blocks, taken back by size and handed out again. */
export class SharedHeap {
  readonly memory: WasmMemory
  #f32!: Float32Array
  #i32!: Int32Array
  #u8!: Uint8Array
  #top: number
  #free = new Map<number, number[]>()
  #retired: (readonly [address: number, bytes: number])[] = []

  /** @throws UnsupportedError where the process may not reserve the address space */
  constructor(base: number) {
    try {
      this.memory = new WebAssembly!.Memory({ initial: 32, maximum: LIMIT / PAGE, shared: true })
    } catch (error) {
      throw new UnsupportedError(
        `No address space for a WebAssembly memory of up to 4 GiB: ${error}.`,
        'Raise the limit of virtual memory (ulimit -v), dispose of other backends, or use the reference backend.',
      )
    }
    this.#top = align(base, 64)
    this.#view()
  }

  get f32(): Float32Array {
    return this.#f32
  }

  get i32(): Int32Array {
    return this.#i32
  }

  get u8(): Uint8Array {
    return this.#u8
  }

  /** Bytes that were ever handed out, those taken back included. */
  get used(): number {
    return this.#top
  }

  /** Address of `bytes` uninitialized bytes. @throws UnsupportedError when 4 GiB are full */
  allocate(bytes: number): number {
    const size = blockSize(bytes)
    const reused = this.#free.get(size)?.pop()
    if (reused !== undefined) return reused
    const address = this.#top
    const end = address + size
    if (end > LIMIT) this.#refuse(bytes)
    const missing = Math.ceil((end - this.#u8.length) / PAGE)
    if (missing > 0) {
      // Doubling keeps the number of growths small; the rest is only address space until it is touched.
      const generous = Math.min(Math.max(missing, this.#u8.length / PAGE), LIMIT / PAGE - this.#u8.length / PAGE)
      if (!this.#grow(generous) && !this.#grow(missing)) this.#refuse(bytes)
    }
    this.#top = end
    return address
  }

  /** Takes back what `allocate(bytes)` gave. */
  release(address: number, bytes: number): void {
    const size = blockSize(bytes)
    const list = this.#free.get(size)
    if (list) list.push(address)
    else this.#free.set(size, [address])
  }

  /** Takes back, at the next `reclaim`, what recorded commands may read without naming it as bytes that they read. */
  retire(address: number, bytes: number): void {
    this.#retired.push([address, bytes])
  }

  /** All that was recorded has run: what was retired can be handed out again. */
  reclaim(): void {
    for (const [address, bytes] of this.#retired.splice(0)) this.release(address, bytes)
  }

  #grow(pages: number): boolean {
    try {
      this.memory.grow(pages)
      this.#view()
      return true
    } catch {
      return false
    }
  }

  #refuse(bytes: number): never {
    throw new UnsupportedError(
      `${bytes} more bytes don't fit the CPU backend's memory: ${this.#top} of ${LIMIT} are taken.`,
      "WebAssembly addresses 4 GiB: use weights 'bf16' or 'q8', fewer or smaller cache pages, or the CUDA backend.",
    )
  }

  #view(): void {
    this.#f32 = new Float32Array(this.memory.buffer)
    this.#i32 = new Int32Array(this.memory.buffer)
    this.#u8 = new Uint8Array(this.memory.buffer)
  }
}

function align(value: number, to: number): number {
  return Math.ceil(value / to) * to
}

/** Steps of an eighth of a power of two, so that a block fits later requests of about its size. */
function blockSize(bytes: number): number {
  const least = Math.max(bytes, 64)
  return align(least, Math.max(64, 2 ** (Math.floor(Math.log2(least)) - 3)))
}
