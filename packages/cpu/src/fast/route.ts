import type { RouterOptions } from '@flashmla/spec'
import { UnsupportedError } from '@flashmla/spec'
import { Op } from './commands'
import type { ThreadPool } from './pool'
import type { FastTensor } from './tensor'

/** Of wasm/route.c. */
const MAX_EXPERTS = 1024
const methods = { greedy: 0, group_limited_greedy: 1, noaux_tc: 2 } as const

/** Records the choice of experts for each row of logits. @throws UnsupportedError for more experts than the kernel takes */
export function recordRoute(
  pool: ThreadPool,
  ids: FastTensor<'i32'>,
  weights: FastTensor<'f32'>,
  logits: FastTensor<'f32'>,
  bias: FastTensor<'f32'> | undefined,
  options: RouterOptions,
): void {
  const experts = logits.shape.at(-1)!
  if (experts > MAX_EXPERTS)
    throw new UnsupportedError(`${experts} experts have no CPU kernel.`, `Up to ${MAX_EXPERTS} are taken.`)
  const command = pool.commands
    .begin(Op.route, logits.size / experts, logits.size * 32)
    .int(0, ids.address)
    .int(1, weights.address)
    .int(2, logits.address)
    .int(3, bias ? bias.address : 0)
    .int(4, experts)
    .int(5, options.topK)
    .int(6, options.scoring === 'sigmoid' ? 1 : 0)
    .int(7, methods[options.method])
    .int(8, options.numGroups)
    .int(9, options.topkGroups)
    .int(10, options.normalize ? 1 : 0)
    .float(11, options.scale)
    .reads(logits.address, logits.bytes)
    .writes(ids.address, ids.bytes)
    .writes(weights.address, weights.bytes)
  if (bias) command.reads(bias.address, bias.bytes)
  command.end()
}
