import { InvalidArgumentError } from '@flashmla/spec'
import { upload } from '../driver/copy'
import { DeviceMemory } from '../driver/memory'
import { Resource } from '../driver/resource'
import type { Stream } from '../driver/stream'

/** What the tables hold at most. */
export interface TableCapacity {
  /** Sequences: the plan's batch. */
  readonly batch: number
  /** Pages of a sequence. */
  readonly maxBlocks: number
  /** Pages of the cache: block ids lie below it. */
  readonly numBlocks: number
  readonly pageSize: number
  /** Query rows of a sequence. */
  readonly sQ: number
  /** Query rows of a step, for a ragged plan: its totalQueries. Without it steps carry no queryStart. */
  readonly totalQueries?: number
}

/** One step's sequences, as host arrays; `b` of them, at most the capacity's batch. */
export interface TableStep {
  /** `[b]` tokens in the cache, the queries' own included. */
  readonly seqLens: Int32Array
  /** `[b, blockTableStride]` block ids; entries past a sequence's last page are never read. */
  readonly blockTable: Int32Array
  readonly blockTableStride: number
  /** `[b + 1]` first query row of each sequence; for a ragged plan only, and always. */
  readonly queryStart?: Int32Array
}

/**
 * Lengths, block table and query starts of a decode in device memory sized once, checked on the host before they get there.
 * Its fields are those of `DecodeTensors`; a captured decode follows an update at its next replay.
 */
export class DecodeTables extends Resource {
  readonly capacity: TableCapacity
  readonly blockTableStride: number
  readonly #stream: Stream
  readonly #memory: { seqLens: DeviceMemory; blockTable: DeviceMemory; queryStart: DeviceMemory | undefined }
  readonly #host: { seqLens: Int32Array; blockTable: Int32Array; queryStart: Int32Array }

  /** All sequences are empty at first. @throws InvalidArgumentError, CudaError */
  constructor(stream: Stream, capacity: TableCapacity) {
    const { context } = stream
    checkCapacity(capacity)
    super(context.driver, `Decode tables of device ${context.device.ordinal}`, [context.held])
    const { batch, maxBlocks, totalQueries } = capacity
    this.capacity = capacity
    this.blockTableStride = maxBlocks
    this.#stream = stream
    this.#host = {
      seqLens: new Int32Array(batch),
      blockTable: new Int32Array(batch * maxBlocks),
      queryStart: new Int32Array(batch + 1),
    }
    const made: DeviceMemory[] = []
    const allocate = (values: Int32Array) => {
      const memory = new DeviceMemory(stream, values.byteLength)
      made.push(memory)
      upload(stream, memory, values)
      return memory
    }
    try {
      this.#memory = {
        seqLens: allocate(this.#host.seqLens),
        blockTable: allocate(this.#host.blockTable),
        queryStart: totalQueries === undefined ? undefined : allocate(this.#host.queryStart),
      }
    } catch (error) {
      for (const memory of made) memory[Symbol.dispose]()
      throw error
    }
    this.hold()
  }

  /** `[batch]` int32 */
  get seqLens(): DeviceMemory {
    this.alive()
    return this.#memory.seqLens
  }

  /** `[batch, maxBlocks]` int32 */
  get blockTable(): DeviceMemory {
    this.alive()
    return this.#memory.blockTable
  }

  /** `[batch + 1]` int32 of a ragged plan */
  get queryStart(): DeviceMemory | undefined {
    this.alive()
    return this.#memory.queryStart
  }

  /**
   * Takes a step over, in the order of the stream; sequences past its end are empty. Not to be called during a capture.
   * @throws InvalidArgumentError naming the first sequence that does not fit; the step before it stays
   */
  update(step: TableStep): void {
    this.alive()
    checkStep(this.capacity, step)
    const { seqLens, blockTable, queryStart } = this.#host
    const b = step.seqLens.length
    seqLens.fill(0)
    seqLens.set(step.seqLens)
    const columns = Math.min(step.blockTableStride, this.blockTableStride)
    for (let s = 0; s < b; s++) {
      const row = s * step.blockTableStride
      blockTable.set(step.blockTable.subarray(row, row + columns), s * this.blockTableStride)
    }
    upload(this.#stream, this.#memory.seqLens, seqLens)
    upload(this.#stream, this.#memory.blockTable, blockTable.subarray(0, b * this.blockTableStride))
    if (!step.queryStart) return
    queryStart.set(step.queryStart)
    queryStart.fill(step.queryStart[b]!, b + 1)
    upload(this.#stream, this.#memory.queryStart!, queryStart)
  }

  protected release(): void {
    const { seqLens, blockTable, queryStart } = this.#memory
    for (const memory of [seqLens, blockTable, queryStart]) memory?.[Symbol.dispose]()
  }
}

/** 1 GiB of block ids. */
const MOST_ENTRIES = 2 ** 28

function checkCapacity(capacity: TableCapacity): void {
  for (const name of ['batch', 'maxBlocks', 'numBlocks', 'pageSize', 'sQ'] as const) {
    const value = capacity[name]
    if (Number.isInteger(value) && value >= 1 && value < 2 ** 31) continue
    throw new InvalidArgumentError(`${name} is ${value}.`, 'Give a whole number from 1 on.')
  }
  const { batch, maxBlocks, totalQueries = 0 } = capacity
  if (batch * maxBlocks > MOST_ENTRIES)
    throw new InvalidArgumentError(
      `A block table of ${batch} by ${maxBlocks} entries is too large.`,
      `Give at most ${MOST_ENTRIES} entries: maxBlocks is the pages of the longest sequence.`,
    )
  if (!Number.isInteger(totalQueries) || totalQueries < 0 || totalQueries >= 2 ** 31)
    throw new InvalidArgumentError(`totalQueries is ${totalQueries}.`, 'Give the whole number of the plan.')
}

function checkStep(capacity: TableCapacity, step: TableStep): void {
  const { seqLens, blockTable, blockTableStride: stride, queryStart } = step
  const b = seqLens.length
  if (b < 1 || b > capacity.batch) {
    throw new InvalidArgumentError(
      `A step of ${b} sequences doesn't fit tables of ${capacity.batch}.`,
      'Give 1 to batch.',
    )
  }
  if (!Number.isInteger(stride) || stride < 0 || blockTable.length < b * stride) {
    throw new InvalidArgumentError(
      `A block table of ${blockTable.length} entries has no ${b} rows of ${stride}.`,
      'Give [b, blockTableStride] entries.',
    )
  }
  const ragged = capacity.totalQueries !== undefined
  if ((queryStart !== undefined) !== ragged) {
    throw new InvalidArgumentError(
      `queryStart is ${queryStart ? 'given' : 'missing'}, the tables are ${ragged ? '' : 'not '}ragged.`,
      'Make the tables with totalQueries exactly when steps carry queryStart.',
    )
  }
  if (queryStart) checkQueryStart(capacity, b, queryStart)
  for (let s = 0; s < b; s++) checkSequence(capacity, step, s)
}

function checkQueryStart({ sQ, totalQueries }: TableCapacity, b: number, queryStart: Int32Array): void {
  if (queryStart.length !== b + 1 || queryStart[0] !== 0 || queryStart[b]! > totalQueries!) {
    throw new InvalidArgumentError(
      `queryStart has ${queryStart.length} entries from ${queryStart[0]} to ${queryStart.at(-1)}.`,
      `Give ${b + 1} entries from 0 to ${totalQueries} at most.`,
    )
  }
  for (let s = 0; s < b; s++) {
    const rows = queryStart[s + 1]! - queryStart[s]!
    if (rows >= 0 && rows <= sQ) continue
    throw new InvalidArgumentError(`Sequence ${s} has ${rows} query rows.`, `Give 0 to ${sQ} of them, or a larger sQ.`)
  }
}

function checkSequence(capacity: TableCapacity, step: TableStep, s: number): void {
  const length = step.seqLens[s]!
  const pages = Math.ceil(length / capacity.pageSize)
  const room = Math.min(step.blockTableStride, capacity.maxBlocks)
  if (length < 0 || pages > room) {
    throw new InvalidArgumentError(
      `Sequence ${s} has ${length} tokens, and its table row ${room} pages of ${capacity.pageSize}.`,
      'Give lengths from 0 on, a block table entry for every page, and maxBlocks for the longest.',
    )
  }
  const row = s * step.blockTableStride
  for (let page = 0; page < pages; page++) {
    const block = step.blockTable[row + page]!
    if (block >= 0 && block < capacity.numBlocks) continue
    throw new InvalidArgumentError(
      `Page ${page} of sequence ${s} is block ${block} of a cache of ${capacity.numBlocks}.`,
      'Fill the block table for every page that the length reaches.',
    )
  }
}
