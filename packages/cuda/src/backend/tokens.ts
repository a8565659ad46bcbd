import { MlaArgmaxParams, MlaSampleParams } from '../kernels/model-params'
import type { BackendDevice } from './device'
import type { CudaTensor } from './tensor'
import { columnsOf, rowsOf } from './tensor'

/** Queues ids[r] = the token of the largest logit of a row. */
export function chooseLargest(device: BackendDevice, ids: CudaTensor<'i32'>, logits: CudaTensor<'f32'>): void {
  const n = rowsOf(logits)
  const values = { logits: logits.address, ids: ids.address, n, vocab: columnsOf(logits) }
  device.run('mla_argmax', MlaArgmaxParams, [n, 1], values)
}

/** Queues ids[r] = a token drawn from a row, or -1 where the caller has to draw it. */
export function drawTokens(
  device: BackendDevice,
  ids: CudaTensor<'i32'>,
  logits: CudaTensor<'f32'>,
  draws: CudaTensor<'f32'>,
): void {
  const n = rowsOf(logits)
  const values = { logits: logits.address, rows: draws.address, ids: ids.address, n, vocab: columnsOf(logits) }
  device.run('mla_sample', MlaSampleParams, [n, 1], values)
}
