import { Worker } from 'node:worker_threads'
import { DisposedError, InvalidArgumentError, UnsupportedError } from '@flashmla/spec'
import { CommandList, commandBytes } from './commands'
import { SharedHeap } from './heap'
import type { WasmModule } from './webassembly'
import { WebAssembly } from './webassembly'

/** Exports of the kernels' module. Addresses are bytes in the shared memory. */
export interface Kernels {
  flush(sync: number): void
  work(sync: number, thread: number): void
  quit(sync: number): void
  widen(out: number, source: number, dtype: number, n: number): void
  toBf16Rows(out: number, source: number, dtype: number, rows: number, i: number): void
  packRows(data: number, space: number, rows: number, vectors: number): void
  toQ8Rows(out: number, scales: number, source: number, dtype: number, rows: number, i: number, result: number): void
}

const STACK = 65536
const SYNC_BYTES = 256
/** Words of wasm/command.h's Sync. */
const Sync = {
  epoch: 0,
  epochSleepers: 1,
  count: 16,
  countSleepers: 17,
  threads: 48,
  status: 50,
  value: 51,
  limit: 52,
  spin: 53,
  ready: 54,
  commands: 55,
} as const
/** Host data that recorded copies still have to read. */
const STAGING_BYTES = 1 << 18
/** Eight unpacked weight rows, or two tiles of decoded cache rows with their scores. */
const SCRATCH_FLOATS = 8 * 32768
export const maxWeightColumns = 32768

/** A worker is a loop inside the module: it never comes back to JavaScript until the pool quits. */
const workerSource = `
const { workerData } = require('node:worker_threads')
const { module, memory, stack, sync, thread } = workerData
const { exports } = new WebAssembly.Instance(module, { env: { memory } })
exports.__stack_pointer.value = stack
exports.work(sync, thread)
`

/** Threads over one memory that run recorded commands: this thread and `threads − 1` workers, started once. */
export class ThreadPool {
  readonly commands: CommandList
  readonly #sync: number
  readonly #staging: number
  #staged = 0
  /** Odd while a list is open; wasm/run.c's flush makes it even again. */
  #epoch = 0
  #opened = false
  #workers: Worker[] = []
  #failure: unknown
  #ended: Promise<unknown> | undefined

  private constructor(
    readonly heap: SharedHeap,
    readonly kernels: Kernels,
    readonly threads: number,
    spin: number,
  ) {
    const align = (bytes: number) => Math.ceil(bytes / 64) * 64
    this.#sync = heap.allocate(SYNC_BYTES)
    const commands = heap.allocate(commandBytes)
    const scratch = heap.allocate(align(SCRATCH_FLOATS * 4) * threads)
    this.#staging = heap.allocate(STAGING_BYTES)
    heap.u8.fill(0, this.#sync, this.#sync + SYNC_BYTES)
    const at = this.#sync / 4
    heap.i32[at + Sync.threads] = threads
    heap.i32[at + Sync.spin] = spin
    heap.i32[at + Sync.commands] = commands
    heap.i32[at + Sync.commands + 1] = scratch
    heap.i32[at + Sync.commands + 2] = align(SCRATCH_FLOATS * 4)
    this.commands = new CommandList(
      heap.memory,
      commands,
      () => this.flush(),
      () => this.open(),
      (count) => this.#set(Sync.count, Sync.countSleepers, count),
    )
  }

  static async start(module: WasmModule, threads: number, spin: number): Promise<ThreadPool> {
    // The module's own data and the first stack lie below 128 KiB.
    const heap = new SharedHeap(2 * STACK)
    const instance = new WebAssembly!.Instance(module, { env: { memory: heap.memory } })
    const kernels = instance.exports as unknown as Kernels
    const pool = new ThreadPool(heap, kernels, threads, spin)
    await pool.#startWorkers(module)
    return pool
  }

  async #startWorkers(module: WasmModule): Promise<void> {
    const { heap } = this
    const ready = this.#sync / 4 + Sync.ready
    for (let thread = 1; thread < this.threads; thread++) {
      const workerData = {
        module,
        memory: heap.memory,
        stack: heap.allocate(STACK) + STACK,
        sync: this.#sync,
        thread,
      }
      const worker = new Worker(workerSource, { eval: true, workerData, execArgv: [], stdin: false })
      worker.on('error', (error) => {
        this.#failure = error
      })
      this.#workers.push(worker)
    }
    while (Atomics.load(heap.i32, ready) < this.threads - 1) {
      if (this.#failure) {
        await this.dispose()
        throw new UnsupportedError(
          `A worker thread could not start: ${this.#failure}.`,
          'Use threads: 1 or the reference backend.',
        )
      }
      await new Promise((resolve) => setTimeout(resolve, 1))
    }
    // Idle workers must not keep the process alive.
    for (const worker of this.#workers) worker.unref()
  }

  /** @throws DisposedError when the threads have been ended */
  alive(): void {
    if (this.#ended) throw new DisposedError('The CPU backend')
  }

  /** True when `stage(bytes)` has room until the next flush. */
  canStage(bytes: number): boolean {
    return this.#staged + bytes + 64 <= STAGING_BYTES
  }

  /** Address of `bytes` that stay as they are until the commands recorded so far and the next one have run. */
  stage(bytes: number): number {
    const address = this.#staging + this.#staged
    this.#staged += Math.ceil(bytes / 64) * 64
    return address
  }

  /**
   * Begins a list, which wakes the workers: they run what is recorded while the rest still is. Called early, by whoever
   * knows that commands will follow, it gives them the time to wake.
   */
  open(): void {
    this.alive()
    if (this.#opened) return
    this.#opened = true
    Atomics.store(this.heap.i32, this.#sync / 4 + Sync.count, 0)
    this.#set(Sync.epoch, Sync.epochSleepers, ++this.#epoch)
  }

  /** Runs what was recorded. @throws InvalidArgumentError for an index that a kernel found outside its table */
  flush(): void {
    this.alive()
    if (this.commands.count === 0) {
      this.heap.reclaim()
      return
    }
    this.commands.clear()
    this.#staged = 0
    this.kernels.flush(this.#sync)
    this.heap.reclaim()
    this.#opened = false
    this.#epoch++
    const { i32 } = this.heap
    const at = this.#sync / 4
    const status = i32[at + Sync.status]!
    if (status === 0) return
    i32[at + Sync.status] = 0
    const [value, limit] = [i32[at + Sync.value]!, i32[at + Sync.limit]!]
    if (status === 1)
      throw new InvalidArgumentError(
        `Row ${value} is not in a table of ${limit}.`,
        'Use ids from 0 to one less than the number of rows.',
      )
    throw new InvalidArgumentError(
      `Slot ${value} is past the cache's ${limit} pages.`,
      'Take slots from the block table.',
    )
  }

  /** Stores a word that workers wait on, and wakes those who sleep. */
  #set(word: number, sleepers: number, value: number): void {
    const { i32 } = this.heap
    const at = this.#sync / 4
    Atomics.store(i32, at + word, value)
    if (Atomics.load(i32, at + sleepers) > 0) Atomics.notify(i32, at + word)
  }

  /** Ends the workers, and waits until they have. Commands that were not flushed are dropped. */
  async dispose(): Promise<void> {
    if (!this.#ended) {
      this.commands.clear()
      this.kernels.quit(this.#sync)
      this.#ended = Promise.all(this.#workers.map((worker) => worker.terminate()))
    }
    await this.#ended
  }
}
