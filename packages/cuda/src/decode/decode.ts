import { InvalidArgumentError } from '@flashmla/spec'
import { fill } from '../driver/copy'
import { Launch } from '../driver/launch'
import { DeviceMemory } from '../driver/memory'
import { Resource } from '../driver/resource'
import type { Stream } from '../driver/stream'
import { alignedBytes, encodeTensorMap } from '../driver/tensor-map'
import type { KernelLibrary } from '../kernels/library'
import { DTYPES, MlaDecodeParams } from '../kernels/params'
import { type DecodeSchedule, scheduleWith } from './schedule'
import { checkShape, type DecodeShape, QK_WIDTH, VALUE_WIDTH } from './shape'

/** Device memory of one decode, checked against the plan's shape. Strides and dtypes are the plan's. */
export interface DecodeTensors {
  /** `[t, hQ, 576]` */
  readonly q: DeviceMemory
  /** `[numBlocks, pageSize, 576]` */
  readonly kv: DeviceMemory
  readonly numBlocks: number
  /** `[batch, blockTableStride]` int32; entries past a sequence's last page are never read. */
  readonly blockTable: DeviceMemory
  readonly blockTableStride: number
  /** `[batch]` int32 tokens in the cache, the queries' own included. */
  readonly seqLens: DeviceMemory
  /** `[batch + 1]` int32, for ragged plans only. */
  readonly queryStart?: DeviceMemory
  /** `[t, hQ, 512]` */
  readonly out: DeviceMemory
  /** `[t, hQ]` float32, natural log. */
  readonly lse: DeviceMemory
  readonly scale: number
}

const NULL_TENSORS = { q: null, kv: null, block_table: null, seq_lens: null, query_start: null, out: null, lse: null }

/**
 * Launches and workspace of one shape on one stream's device. The kernels balance their work on the device from `seqLens`, so
 * lengths and block tables may be rewritten under a captured graph.
 */
export class DecodePlan extends Resource {
  readonly shape: DecodeShape
  readonly symbol: string
  readonly schedule: DecodeSchedule
  readonly #stream: Stream
  readonly #params: Uint8Array
  readonly #workspace: DeviceMemory[] = []
  readonly #decode: Launch
  readonly #combine: Launch | undefined
  readonly #maps: Uint8Array[] = []
  #bound: DecodeTensors | undefined

  /** @internal Made by `planDecode`. */
  constructor(library: KernelLibrary, stream: Stream, shape: DecodeShape) {
    const { context } = stream
    if (library.context !== context)
      throw new InvalidArgumentError(
        `The kernels are on device ${library.context.device.ordinal}, the stream is not of their context.`,
        'Use kernels and stream of one context.',
      )
    checkShape(shape)
    super(context.driver, `A decode plan of device ${context.device.ordinal}`, [context.held])
    this.shape = shape
    this.#stream = stream
    const schedule = scheduleWith(library, shape)
    const { symbol, combine } = schedule
    const entry = library.entry(symbol)
    this.schedule = schedule
    this.symbol = symbol
    const decodeKernel = library.kernel(symbol)
    const combineKernel = combine && library.kernel(combine.symbol)
    const { kvRowStride = QK_WIDTH, kvPageStride = shape.pageSize * kvRowStride } = shape
    const workspace: Record<keyof DecodeSchedule['workspace'], bigint | null> = {
      partial_out: null,
      partial_lse: null,
      splits: null,
      parts_ready: null,
    }
    try {
      for (const [name, bytes] of Object.entries(schedule.workspace)) {
        if (bytes === 0) continue
        const memory = new DeviceMemory(stream, bytes)
        this.#workspace.push(memory)
        workspace[name as keyof typeof workspace] = memory.address
        // The kernels leave it as they found it, from the first launch on.
        const byte = schedule.filled[name as keyof typeof workspace]
        if (byte !== undefined) fill(stream, memory, byte)
      }
    } catch (error) {
      for (const memory of this.#workspace) memory[Symbol.dispose]()
      throw error
    }
    this.#params = MlaDecodeParams.allocate({
      ...NULL_TENSORS,
      ...workspace,
      block_table_stride: 0,
      kv_page_stride: kvPageStride,
      kv_row_stride: kvRowStride,
      softmax_scale: 0,
      num_blocks: 0,
      group_workers: schedule.workers / schedule.tilesPerGroup,
      groups: schedule.groups,
      first_lead: schedule.firstLead,
      block_ps: schedule.blockPs,
      reserved: 0,
      batch: shape.batch,
      s_q: shape.sQ,
      h_q: shape.hQ,
      page_size: shape.pageSize,
      out_dtype: DTYPES[shape.outDtype ?? shape.dtype],
      workers: schedule.workers,
      tiles_per_group: schedule.tilesPerGroup,
      min_blocks: schedule.minBlocks,
      tile_overhead: schedule.tileOverhead,
      tile_rows: schedule.tileRows,
      split_by_tile: schedule.splitByTile ? 1 : 0,
    })
    const mapped = library.target === 'sm_90a'
    if (mapped) this.#maps = Array.from({ length: 3 }, () => alignedBytes(context, 128, 64))
    this.#decode = new Launch({
      kernel: decodeKernel,
      grid: schedule.decodeGrid,
      threads: entry.threads,
      cluster: entry.cluster,
      programmatic: mapped,
      parameters: [this.#params, ...this.#maps],
    })
    this.#combine =
      combine &&
      new Launch({
        kernel: combineKernel!,
        grid: combine.grid,
        threads: library.entry(combine.symbol).threads,
        programmatic: mapped,
        parameters: [this.#params],
      })
    this.hold()
  }

  /** Points the plan at tensors. Nothing is launched when it throws. @throws InvalidArgumentError naming what is too small */
  bind(tensors: DecodeTensors): void {
    this.alive()
    if (tensors === this.#bound) {
      const { q, kv, blockTable, seqLens, queryStart, out, lse } = tensors
      for (const memory of [q, kv, blockTable, seqLens, queryStart, out, lse]) memory?.address // throws when disposed
      return
    }
    const { shape } = this
    this.#check(tensors)
    const { q, kv, blockTable, seqLens, queryStart, out, lse } = tensors
    this.#bound = undefined // when the rest throws, the maps may be those of neither
    if (this.#maps.length > 0) this.#encode(tensors)
    MlaDecodeParams.write(this.#params, {
      q: q.address,
      kv: kv.address,
      block_table: blockTable.address,
      seq_lens: seqLens.address,
      query_start: shape.totalQueries === undefined ? null : queryStart!.address,
      out: out.address,
      lse: lse.address,
      block_table_stride: tensors.blockTableStride,
      softmax_scale: tensors.scale,
      num_blocks: tensors.numBlocks,
    })
    this.#bound = tensors
  }

  /** Queues the kernels on the plan's stream. @internal Called by `decode`. */
  launch(): void {
    this.alive()
    if (this.#stream.context.captured) for (const memory of this.#workspace) void memory.address
    this.#decode.on(this.#stream)
    this.#combine?.on(this.#stream)
  }

  #check(tensors: DecodeTensors): void {
    const { shape } = this
    const { batch, hQ, pageSize, totalQueries } = shape
    const { kvRowStride = QK_WIDTH, kvPageStride = pageSize * kvRowStride } = shape
    const t = totalQueries ?? batch * shape.sQ
    const outBytes = (shape.outDtype ?? shape.dtype) === 'f32' ? 4 : 2
    const { numBlocks, blockTableStride, scale } = tensors
    if (!Number.isInteger(numBlocks) || numBlocks < 1 || !Number.isInteger(blockTableStride) || blockTableStride < 1)
      throw new InvalidArgumentError(
        `numBlocks is ${numBlocks} and blockTableStride ${blockTableStride}.`,
        'Give whole numbers from 1 on.',
      )
    if (!Number.isFinite(scale)) throw new InvalidArgumentError(`scale is ${scale}.`, 'Give a finite softmax scale.')
    if ((totalQueries === undefined) !== (tensors.queryStart === undefined))
      throw new InvalidArgumentError(
        `queryStart is ${tensors.queryStart ? 'given' : 'missing'}, the plan is ${totalQueries === undefined ? 'not ' : ''}ragged.`,
        'Give totalQueries to planDecode exactly when queryStart is used.',
      )
    const kvElements = (numBlocks - 1) * kvPageStride + (pageSize - 1) * kvRowStride + QK_WIDTH
    const needs: [string, DeviceMemory | undefined, number][] = [
      ['q', tensors.q, t * hQ * QK_WIDTH * 2],
      ['kv', tensors.kv, kvElements * 2],
      ['blockTable', tensors.blockTable, batch * blockTableStride * 4],
      ['seqLens', tensors.seqLens, batch * 4],
      ['queryStart', tensors.queryStart, (batch + 1) * 4],
      ['out', tensors.out, t * hQ * VALUE_WIDTH * outBytes],
      ['lse', tensors.lse, t * hQ * 4],
    ]
    for (const [name, memory, bytes] of needs) {
      if (!memory) continue
      if (memory.context !== this.#stream.context)
        throw new InvalidArgumentError(
          `${name} is on device ${memory.context.device.ordinal}, in another context than the plan's on device ${this.#stream.context.device.ordinal}.`,
          'Keep all tensors of a decode in the context of its stream.',
        )
      if (memory.bytes < bytes)
        throw new InvalidArgumentError(
          `${name} has ${memory.bytes} bytes; the plan (batch ${batch}, ${t} rows, ${hQ} heads) needs ${bytes}.`,
          'Allocate the tensors for the shape given to planDecode.',
        )
    }
  }

  #encode({ q, kv, numBlocks }: DecodeTensors): void {
    const { dtype, batch, sQ, hQ, pageSize, totalQueries = batch * sQ } = this.shape
    const { kvRowStride = QK_WIDTH, kvPageStride = pageSize * kvRowStride } = this.shape
    const { tileRows } = this.schedule
    const { context } = this.#stream
    const [qMap, kvMap, tileMap] = this.#maps as [Uint8Array, Uint8Array, Uint8Array]
    const rows = Math.max(totalQueries * hQ, 1)
    const queries = { dtype, address: q.address, dims: [64, rows, QK_WIDTH / 64], strides: [QK_WIDTH * 2, 128] }
    encodeTensorMap(context, { ...queries, box: [64, tileRows, QK_WIDTH / 64] }, qMap)
    if (this.symbol.endsWith('_gather')) {
      kvMap.set(qMap)
      tileMap.set(qMap)
      return
    }
    const pages = {
      dtype,
      address: kv.address,
      dims: [64, pageSize, QK_WIDTH / 64, numBlocks],
      strides: [kvRowStride * 2, 128, kvPageStride * 2],
      // Whole pages are asked for anyhow: fetching more than a copy's lines with it was slower by up to 5 %.
      l2Promotion: 0,
    } as const
    encodeTensorMap(context, { ...pages, box: [64, Math.min(pageSize, 64), 2, 1] }, kvMap)
    encodeTensorMap(context, { ...pages, box: [64, Math.min(pageSize, 64), 1, 1] }, tileMap)
  }

  protected release(): void {
    for (const memory of this.#workspace) memory[Symbol.dispose]()
  }
}

/**
 * Makes the plan of a decode: kernel, grids and workspace. It depends on the shape only.
 * @throws InvalidArgumentError for a shape that is off, UnsupportedError without a kernel for the device, CudaError
 */
export function planDecode(library: KernelLibrary, stream: Stream, shape: DecodeShape): DecodePlan {
  return new DecodePlan(library, stream, shape)
}

/**
 * Queues absorbed attention over a paged cache on the plan's stream. Query i of a sequence sees `seqLen − sQ + i + 1` tokens;
 * a row with nothing to see gets 0, and −Infinity as its log-sum-exp. The same `tensors` object again costs no checks.
 * @throws InvalidArgumentError when a tensor doesn't fit the plan, DisposedError, CudaError
 */
export function decode(plan: DecodePlan, tensors: DecodeTensors): void {
  plan.bind(tensors)
  plan.launch()
}
