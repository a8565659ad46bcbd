import { UnsupportedError } from '@flashmla/spec'
import { MlaNaiveParams } from '../kernels/model-params'
import type { CudaBatch } from './batch'
import type { CudaCache } from './cache'
import type { BackendDevice } from './device'
import { runLinear } from './linear'
import type { CudaTensor } from './tensor'
import { columnsOf } from './tensor'
import type { CudaWeight } from './weight'

/** Work memory for the rebuilt keys and values of a run of tokens. */
const RUN_BYTES = 64 * 2 ** 20
const MOST_TOKENS = 1024

export interface NaiveOperands {
  /** `[t, h, v]` */
  readonly out: CudaTensor<'f32'>
  /** `[t, h, nope + rope]` */
  readonly q: CudaTensor<'f32'>
  /** `[h · (nope + v), kvLoraRank]` */
  readonly kvB: CudaWeight
  readonly cache: CudaCache
  readonly batch: CudaBatch
  readonly scale: number
}

/**
 * Queues naive attention, sequence by sequence, a run of its tokens at a time: decode their latents, rebuild keys and values, attend.
 * @throws UnsupportedError in a capture: runs follow the lengths
 */
export function runNaiveAttention(device: BackendDevice, operands: NaiveOperands): void {
  const { out, q, kvB, cache, batch, scale } = operands
  const [t, h, width] = q.shape as [number, number, number]
  const { kvLoraRank: rank, ropeDim } = cache.format
  const [nope, v] = [width - ropeDim, columnsOf(out)]
  const addresses = { q: q.address, out: out.address, cache: cache.address }
  void kvB.address
  if (device.mode !== 'run')
    throw new UnsupportedError(
      'Naive attention can’t be part of a captured step: its work follows the lengths.',
      'Capture a step with absorbed attention, or run it without a capture.',
    )
  if (t === 0 || h === 0) return
  const tokenBytes = h * (nope + v) * 4
  const most = Math.max(Math.min(Math.floor(RUN_BYTES / tokenBytes), MOST_TOKENS, Math.max(batch.longest, 1)), 1)
  const latents = device.workspace('naive latents', most * (rank + ropeDim) * 4).address
  const expanded = device.workspace('naive keys and values', most * tokenBytes).address
  const state = device.workspace('naive state', t * h * 8).address
  for (let s = 0; s < batch.sequences; s++) {
    const [firstQuery, seqLen] = [batch.queryStart(s), batch.seqLen(s)]
    const queries = batch.queryStart(s + 1) - firstQuery
    if (queries === 0) continue
    // A sequence without tokens takes one run of none, which writes its zeros.
    for (let first = 0; first < Math.max(seqLen, 1); first += most) {
      const count = Math.min(most, seqLen - first)
      const values = {
        ...addresses,
        state,
        blocks: batch.blocksOf(s),
        latents,
        expanded,
        first_query: firstQuery,
        num_blocks: cache.numBlocks,
        queries,
        seq_len: seqLen,
        first,
        count,
        h,
        nope,
        v,
        page_size: cache.pageSize,
        format: cache.code,
        kv_lora_rank: rank,
        rope_dim: ropeDim,
        scale,
      }
      device.run('mla_gather_latents', MlaNaiveParams, [Math.ceil(count / 8), 1], values)
      runLinear(device, {
        x: latents,
        xStride: rank + ropeDim,
        out: expanded,
        outStride: h * (nope + v),
        n: count,
        weight: kvB,
      })
      device.run('mla_attend_naive', MlaNaiveParams, [queries * h, 1], values)
    }
  }
}
