import type { RouterOptions } from '@flashmla/spec'

/**
 * Experts of one token in float64, by repeated choice of the best. DeepSeek-V2 (arXiv 2405.04434, §2.2): a group ranks by
 * its best expert; DeepSeek-V3 (arXiv 2412.19437, §2.1.2): by the sum of its two best, bias included, and the bias
 * steers the choice only.
 */
export function route(
  logits: readonly number[],
  bias: readonly number[] | undefined,
  options: RouterOptions,
): { ids: number[]; weights: number[] } {
  const max = Math.max(...logits)
  const total = logits.reduce((sum, x) => sum + Math.exp(x - max), 0)
  const scores = logits.map((x) => (options.scoring === 'sigmoid' ? 1 / (1 + Math.exp(-x)) : Math.exp(x - max) / total))
  const ranked = scores.map((score, e) => score + (bias?.[e] ?? 0))
  let allowed = ranked.map((_, e) => e)
  if (options.method !== 'greedy' && options.numGroups > 1) {
    const size = ranked.length / options.numGroups
    const groupScores = Array.from({ length: options.numGroups }, (_, g) => {
      const inside = ranked.slice(g * size, (g + 1) * size).sort((a, b) => b - a)
      return options.method === 'noaux_tc' ? inside[0]! + (inside[1] ?? 0) : inside[0]!
    })
    const groups = best(
      groupScores,
      groupScores.map((_, g) => g),
      options.topkGroups,
    )
    allowed = allowed.filter((e) => groups.includes(Math.floor(e / size)))
  }
  const ids = best(ranked, allowed, options.topK)
  const sum = options.normalize ? ids.reduce((a, e) => a + scores[e]!, 0) : 1
  return { ids, weights: ids.map((e) => (scores[e]! / sum) * options.scale) }
}

/** The k best of `among`, best first, the lower index on a tie. */
function best(values: readonly number[], among: readonly number[], k: number): number[] {
  const left = [...among]
  return Array.from({ length: k }, () => {
    let at = 0
    for (let i = 1; i < left.length; i++) if (values[left[i]!]! > values[left[at]!]!) at = i
    return left.splice(at, 1)[0]!
  })
}
