import { Graph } from '../driver/graph'
import type { Launch, LaunchOptions } from '../driver/launch'
import type { Stream } from '../driver/stream'

/** A launch that is laid out once, with the bytes of its parameters. */
export interface Operation {
  readonly launch: Launch
  readonly parameters: Uint8Array
  readonly sharedBytes: number
}

type Grid = LaunchOptions['grid']

/** What launches of another kind depend on: the same numbers stand for the same launches. */
export type Key = readonly (number | bigint)[]

/** One thing of a run: a launch with the values it had, or several that a key stands for. */
type Entry =
  | { readonly operation: Operation; readonly grid: Grid; readonly values: Uint8Array }
  | { readonly key: Key; readonly enqueue: () => void }

interface Chunk {
  readonly entries: readonly Entry[]
  graph: Graph | undefined
  /** When it was last met. */
  used: number
}

/** Entries of a chunk: enough for one call to replace many, few enough that the device works while the host goes on. */
const LONGEST = 24
/** Shorter ones are not worth a graph. */
const SHORTEST = 4
const MOST_CHUNKS = 160

/**
 * Steps of a model repeat: the same launches with the same values, for as long as batch and work memory are alike. The queue
 * keeps what was launched in chunks. When a run begins like a chunk it is held back as long as it goes on like it: a whole chunk
 * is replayed as a graph with one call, and what turns out different is launched as it came. The order never changes.
 *
 * 1. A run without a likeness is launched at once, and kept as a chunk when it is LONGEST entries long or flushed.
 * 2. A chunk met again gets its graph then.
 * 3. `flush` comes before everything else that touches the stream or frees memory.
 */
export class LaunchQueue {
  readonly #chunks = new Set<Chunk>()
  /** Chunks that the run so far is like, when it is held back. */
  #like: Chunk[] = []
  /** Entries of the run: held back as long as it is like a chunk, launched otherwise. */
  #run: Entry[] = []
  #clock = 0

  constructor(
    private readonly stream: Stream,
    private readonly graphs: boolean,
  ) {}

  /** Queues an operation whose parameters hold the values. */
  launch(operation: Operation, grid: Grid): void {
    const i = this.#run.length
    if (this.#stillLike((entry) => isSame(entry, operation, grid))) {
      this.#hold(this.#like[0]!.entries[i]!)
      return
    }
    const values = operation.parameters.slice()
    this.#release()
    this.#launchNow({ operation, grid, values })
  }

  /** Queues launches that are the same whenever `key` is. */
  enqueue(key: Key, enqueue: () => void): void {
    // Not the chunk's own entry: what that was made with may be gone by now, and other memory lie at its addresses.
    if (this.#stillLike((entry) => 'key' in entry && isSameKey(entry.key, key))) {
      this.#hold({ key, enqueue })
      return
    }
    this.#release()
    this.#launchNow({ key, enqueue })
  }

  /** Launches what is held back, and ends the run. */
  flush(): void {
    if (this.#run.length === 0) return
    const whole = this.#like.find(({ entries }) => entries.length === this.#run.length)
    if (whole) this.#replay(whole)
    else {
      this.#release()
      this.#keep()
    }
  }

  dispose(): void {
    this.#run = []
    this.#like = []
    for (const { graph } of this.#chunks) graph?.[Symbol.dispose]()
    this.#chunks.clear()
  }

  /** Whether the run, with one entry more, is like a chunk still; else it stays like those it was. */
  #stillLike(fits: (entry: Entry) => boolean): boolean {
    const i = this.#run.length
    if (i > 0 && this.#like.length === 0) return false
    if (i > 0 && this.#like.length === 1) {
      const entry = this.#like[0]!.entries[i]
      return entry !== undefined && fits(entry)
    }
    const like: Chunk[] = []
    for (const chunk of i === 0 ? this.#chunks : this.#like) {
      const entry = chunk.entries[i]
      if (entry && fits(entry)) like.push(chunk)
    }
    if (like.length === 0) return false
    this.#like = like
    return true
  }

  #hold(entry: Entry): void {
    this.#run.push(entry)
    if (this.#run.length === LONGEST) this.#replay(this.#like[0]!)
  }

  /** Launches what is held back: the run goes on without a likeness. */
  #release(): void {
    if (this.#like.length === 0) return
    this.#like = []
    for (const entry of this.#run) enqueueEntry(entry, this.stream)
  }

  #launchNow(entry: Entry): void {
    enqueueEntry(entry, this.stream)
    if (!this.graphs) return
    this.#run.push(entry)
    if (this.#run.length === LONGEST) this.#keep()
  }

  #replay(chunk: Chunk): void {
    const run = this.#run
    this.#run = []
    this.#like = []
    chunk.used = ++this.#clock
    // Not watched: a run is like the chunk when its addresses are, whose memory it may be now.
    const enqueue = () => {
      for (const entry of run) enqueueEntry(entry, this.stream)
    }
    try {
      chunk.graph ??= new Graph(this.stream, enqueue, { watch: false })
    } catch {
      enqueue() // no room for a graph: what was taken in still has to run
      return
    }
    chunk.graph.replay(this.stream)
  }

  #keep(): void {
    const entries = this.#run
    this.#run = []
    if (entries.length < SHORTEST) return
    this.#chunks.add({ entries, graph: undefined, used: ++this.#clock })
    if (this.#chunks.size <= MOST_CHUNKS) return
    // The half not met for longest goes, once the device is done with its graphs.
    const old = [...this.#chunks].sort((a, b) => a.used - b.used).slice(0, MOST_CHUNKS / 2)
    if (old.some(({ graph }) => graph)) this.stream.synchronize()
    for (const chunk of old) {
      chunk.graph?.[Symbol.dispose]()
      this.#chunks.delete(chunk)
    }
  }
}

function isSame(entry: Entry, operation: Operation, grid: Grid): boolean {
  if (!('operation' in entry) || entry.operation !== operation) return false
  const { grid: known, values } = entry
  return (
    known[0] === grid[0] &&
    known[1] === grid[1] &&
    (known[2] ?? 1) === (grid[2] ?? 1) &&
    Buffer.compare(values, operation.parameters) === 0
  )
}

function isSameKey(a: Key, b: Key): boolean {
  if (a.length !== b.length) return false
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false
  return true
}

function enqueueEntry(entry: Entry, stream: Stream): void {
  if ('key' in entry) {
    entry.enqueue()
    return
  }
  const { operation, grid, values } = entry
  operation.parameters.set(values)
  operation.launch.setGrid(grid)
  operation.launch.on(stream)
}
