import type { RouterOptions } from '@flashmla/spec'

/** Indices of the k largest values, largest first; ties go to the lower index. */
export function topK(values: ArrayLike<number>, k: number): number[] {
  return Array.from({ length: values.length }, (_, i) => i)
    .sort((a, b) => values[b]! - values[a]! || a - b)
    .slice(0, k)
}

/**
 * One token's experts. Greedy and group-limited selection are DeepSeek-V2's (arXiv 2405.04434, §2.2); noaux_tc adds a
 * bias for the choice but not for the weight, and ranks a group by its two best (DeepSeek-V3, arXiv 2412.19437, §2.1.2).
 */
export function routeToken(
  logits: Float64Array,
  bias: Float32Array | undefined,
  options: RouterOptions,
): { ids: number[]; weights: number[] } {
  const scores = options.scoring === 'sigmoid' ? logits.map((x) => 1 / (1 + Math.exp(-x))) : softmax(logits)
  const choice = Float64Array.from(scores)
  if (bias) for (let e = 0; e < choice.length; e++) choice[e]! += bias[e]!
  if (options.method !== 'greedy' && options.numGroups > 1) {
    const size = choice.length / options.numGroups
    const best = options.method === 'noaux_tc' ? 2 : 1
    const groups = Array.from({ length: options.numGroups }, (_, g) => {
      const group = choice.subarray(g * size, (g + 1) * size)
      return topK(group, best).reduce((sum, e) => sum + group[e]!, 0)
    })
    const kept = new Set(topK(groups, options.topkGroups))
    for (let e = 0; e < choice.length; e++) if (!kept.has(Math.floor(e / size))) choice[e] = Number.NEGATIVE_INFINITY
  }
  const ids = topK(choice, options.topK)
  const sum = options.normalize ? ids.reduce((total, e) => total + scores[e]!, 1e-20) : 1
  return { ids, weights: ids.map((e) => (scores[e]! / sum) * options.scale) }
}

function softmax(logits: Float64Array): Float64Array {
  const max = logits.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY)
  const powers = logits.map((x) => Math.exp(x - max))
  const sum = powers.reduce((a, b) => a + b, 0)
  return powers.map((p) => p / sum)
}
