import type { RouterOptions } from '@flashmla/spec'
import { UnsupportedError } from '@flashmla/spec'
import { MlaRouteParams } from '../kernels/model-params'
import type { BackendDevice } from './device'
import type { CudaTensor } from './tensor'
import { columnsOf, rowsOf } from './tensor'

/** Of mla_route. */
const MOST_EXPERTS = 1024

/** Queues the choice of experts, a warp for each row of logits. @throws UnsupportedError for more than 1024 experts */
export function chooseExperts(
  device: BackendDevice,
  ids: CudaTensor<'i32'>,
  weights: CudaTensor<'f32'>,
  logits: CudaTensor<'f32'>,
  bias: CudaTensor<'f32'> | undefined,
  options: RouterOptions,
): void {
  const [n, experts] = [rowsOf(logits), columnsOf(logits)]
  if (experts > MOST_EXPERTS)
    throw new UnsupportedError(`${experts} experts have no CUDA kernel.`, `Up to ${MOST_EXPERTS} are taken.`)
  const { scoring, method, topK, numGroups, topkGroups, normalize, scale } = options
  device.run('mla_route', MlaRouteParams, [n, 1], {
    logits: logits.address,
    bias: bias ? bias.address : null,
    ids: ids.address,
    weights: weights.address,
    n,
    experts,
    top_k: topK,
    sigmoid: scoring === 'sigmoid' ? 1 : 0,
    num_groups: method === 'greedy' ? 1 : numGroups,
    topk_groups: topkGroups,
    group_best: method === 'noaux_tc' ? 2 : 1,
    normalize: normalize ? 1 : 0,
    scale,
  })
}
