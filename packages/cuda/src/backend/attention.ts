import { UnsupportedError } from '@flashmla/spec'
import { MlaAttendParams } from '../kernels/model-params'
import type { CudaBatch } from './batch'
import type { CudaCache } from './cache'
import type { BackendDevice } from './device'
import type { CudaTensor } from './tensor'

/** Rows (query, head) and output columns of a block of mla_attend. */
const ROWS = 16
const COLUMNS = 512
/** A part of a sequence has at least as many tokens, and there are no more parts than that. */
const PART_TOKENS = 64
const MOST_PARTS = 64
/** Shared memory of a block besides queries and tokens. */
const STATIC_SHARED_BYTES = 10240
/** Past 48 KB a kernel has to be allowed its memory, and only dynamic memory past it makes the binding ask. */
const LEAST_SHARED_BYTES = 48 * 1024 + 16

export interface AttentionOperands {
  /** `[t, h, kvLoraRank]` */
  readonly out: CudaTensor<'f32'>
  /** `[t, h]` */
  readonly lse: CudaTensor<'f32'>
  /** `[t, h, kvLoraRank + ropeDim]` */
  readonly q: CudaTensor<'f32'>
  readonly cache: CudaCache
  readonly batch: CudaBatch
  readonly scale: number
}

/** How a step is cut: query rows of a tile, tiles, and parts of a sequence's tokens so that there is work for all processors. */
export function planAttention(given: {
  readonly t: number
  readonly h: number
  readonly rank: number
  /** Most query rows of a sequence, and tokens of the longest. */
  readonly mostQueries: number
  readonly longest: number
  readonly multiprocessors: number
}): { tileQueries: number; grid: readonly [number, number, number] } {
  const { t, h, rank, mostQueries, longest, multiprocessors } = given
  // Queries of several sequences in a tile would be walked one after the other.
  const tileQueries = mostQueries > 1 ? Math.max(Math.floor(ROWS / h), 1) : 1
  const tiles = Math.ceil(t / tileQueries) * Math.ceil(h / ROWS)
  const columns = Math.ceil(rank / COLUMNS)
  const wanted = Math.ceil((2 * multiprocessors) / Math.max(tiles * columns, 1))
  const parts = Math.max(Math.min(wanted, Math.ceil(longest / PART_TOKENS), MOST_PARTS), 1)
  return { tileQueries, grid: [tiles, parts, columns] }
}

/** Queues absorbed attention in float32, over any format, width and page size. @throws UnsupportedError for a row too wide */
export function runAttention(device: BackendDevice, operands: AttentionOperands): void {
  const { out, lse, q, cache, batch, scale } = operands
  const { kvLoraRank: rank, ropeDim } = cache.format
  const [t, h] = q.shape as [number, number, number]
  const sharedBytes = Math.max(2 * ROWS * rowStride(rank + ropeDim) * 4, LEAST_SHARED_BYTES)
  const { sharedBytesPerBlock, multiprocessors } = device.context.device
  if (sharedBytes + STATIC_SHARED_BYTES > sharedBytesPerBlock)
    throw new UnsupportedError(
      `A cache row of ${rank + ropeDim} values has no CUDA kernel: ${sharedBytes} bytes of shared memory are too many.`,
      'Use a narrower latent, or the CPU backend.',
    )
  const [from, to, sums, rows] = [q.address, out.address, lse.address, cache.address]
  if (t === 0 || h === 0) return
  const { queryStart, seqLens, blockTable } = batch.tables
  if (device.mode === 'capture')
    device.capturing.push(batch.hold({ cache, queries: Number.POSITIVE_INFINITY, rows: Number.POSITIVE_INFINITY }))
  // A replay may see longer sequences than the capture.
  // Powers of two keep the launches of growing sequences alike.
  const most = batch.capacity.maxBlocks * cache.pageSize
  const longest = device.mode === 'run' ? Math.min(2 ** Math.ceil(Math.log2(Math.max(batch.longest, 1))), most) : most
  const plan = planAttention({ t, h, rank, mostQueries: batch.mostQueries, longest, multiprocessors })
  const parts = plan.grid[1]
  const values = {
    q: from,
    cache: rows,
    out: to,
    lse: sums,
    query_start: queryStart.address,
    seq_lens: seqLens.address,
    block_table: blockTable.address,
    partial_out: parts > 1 ? device.workspace('attention out', parts * t * h * rank * 4).address : null,
    partial_lse: parts > 1 ? device.workspace('attention lse', parts * t * h * 4).address : null,
    block_table_stride: batch.capacity.maxBlocks,
    num_blocks: cache.numBlocks,
    t,
    h,
    b: batch.capacity.maxSequences,
    page_size: cache.pageSize,
    format: cache.code,
    kv_lora_rank: rank,
    rope_dim: ropeDim,
    tile_queries: plan.tileQueries,
    splits: parts,
    scale,
    vector: cache.vector ? 1 : 0,
    reserved: 0,
  }
  device.run('mla_attend', MlaAttendParams, plan.grid, values, { sharedBytes })
  if (parts > 1) device.run('mla_attend_merge', MlaAttendParams, [t * h, 1], values)
}

/** attend_stride of kernels/model/attend.h: floats between two rows in shared memory. */
function rowStride(width: number): number {
  return (Math.ceil(width / 4) | 1) * 4
}
