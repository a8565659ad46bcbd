import type { WasmMemory } from './webassembly'

/** Codes of wasm/command.h. */
export const Op = {
  copy: 0,
  embed: 1,
  gather: 2,
  rmsNorm: 3,
  gemm: 4,
  copyColumns: 5,
  rotary: 6,
  add: 7,
  argmax: 8,
  silu: 9,
  route: 10,
  expertSort: 11,
  expertUp: 12,
  expertDown: 13,
  expertSum: 14,
  append: 15,
  copyBlock: 16,
  attend: 17,
  combine: 18,
  naiveRows: 19,
  naiveAttend: 20,
  naiveFinish: 21,
  quantize: 22,
} as const

const PARALLEL = 1
const BARRIER = 2
const WORDS = 32
const FIRST_ARGUMENT = 8
const MAX_COMMANDS = 4096
const MAX_RANGES = 128
/** Multiply-adds (or bytes moved) below which waking a second thread costs more than it saves. */
const PARALLEL_WORK = 16384

export const commandBytes = MAX_COMMANDS * WORDS * 4

/**
 * Records operations in shared memory. Each names the bytes that it reads and writes; a barrier is put only before an
 * operation that needs what another thread may still be working on. Workers run what is recorded at once.
 */
export class CommandList {
  #count = 0
  #at = 0
  #conflict = false
  #ranges = 0
  /** Of the operations since the last barrier: start, end, and 1 for a write + 2 for a parallel operation. */
  readonly #start = new Float64Array(MAX_RANGES)
  readonly #end = new Float64Array(MAX_RANGES)
  readonly #kind = new Uint8Array(MAX_RANGES)
  #first = 0
  #words: Int32Array
  #floats: Float32Array

  constructor(
    memory: WasmMemory,
    address: number,
    private readonly flush: () => void,
    /** Called before the first command of a list, and with the number of commands after each. */
    private readonly open: () => void,
    private readonly publish: (count: number) => void,
  ) {
    this.#words = new Int32Array(memory.buffer, address, MAX_COMMANDS * WORDS)
    this.#floats = new Float32Array(memory.buffer, address, MAX_COMMANDS * WORDS)
  }

  get count(): number {
    return this.#count
  }

  /** Forgets what has been run. */
  clear(): void {
    this.#count = 0
    this.#ranges = 0
  }

  /** Begins an operation of `tasks` independent tasks; `work` decides whether threads share them. */
  begin(op: number, tasks: number, work: number): this {
    if (this.#count === MAX_COMMANDS) this.flush()
    if (this.#count === 0) this.open()
    this.#at = this.#count * WORDS
    this.#words[this.#at] = op
    this.#words[this.#at + 1] = tasks > 1 && work >= PARALLEL_WORK ? PARALLEL : 0
    this.#words[this.#at + 2] = 0
    this.#words[this.#at + 3] = tasks
    this.#words.fill(0, this.#at + 4, this.#at + FIRST_ARGUMENT)
    this.#conflict = false
    this.#first = this.#ranges
    return this
  }

  int(index: number, value: number): this {
    this.#words[this.#at + FIRST_ARGUMENT + index] = value
    return this
  }

  float(index: number, value: number): this {
    this.#floats[this.#at + FIRST_ARGUMENT + index] = value
    return this
  }

  reads(address: number, bytes: number): this {
    return this.#touch(address, bytes, 0)
  }

  writes(address: number, bytes: number): this {
    return this.#touch(address, bytes, 1)
  }

  /** Ends the operation that `begin` began. */
  end(): void {
    if (this.#conflict) {
      this.#words[this.#at + 1]! |= BARRIER
      // Only this operation's own ranges are open after its barrier.
      const own = this.#ranges - this.#first
      this.#start.copyWithin(0, this.#first, this.#ranges)
      this.#end.copyWithin(0, this.#first, this.#ranges)
      this.#kind.copyWithin(0, this.#first, this.#ranges)
      this.#ranges = own
    }
    this.publish(++this.#count)
  }

  #touch(address: number, bytes: number, write: number): this {
    const parallel = (this.#words[this.#at + 1]! & PARALLEL) << 1
    const end = address + bytes
    if (!this.#conflict) {
      for (let r = 0; r < this.#first; r++) {
        const kind = this.#kind[r]!
        const ordered = ((kind | parallel) & 2) === 0
        if (!ordered && ((kind | write) & 1) === 1 && this.#start[r]! < end && address < this.#end[r]!) {
          this.#conflict = true
          break
        }
      }
    }
    if (this.#ranges === MAX_RANGES) {
      if (this.#first === 0) return this
      this.#conflict = true
      const own = this.#ranges - this.#first
      this.#start.copyWithin(0, this.#first)
      this.#end.copyWithin(0, this.#first)
      this.#kind.copyWithin(0, this.#first)
      this.#ranges = own
      this.#first = 0
    }
    this.#start[this.#ranges] = address
    this.#end[this.#ranges] = end
    this.#kind[this.#ranges++] = write | parallel
    return this
  }
}
