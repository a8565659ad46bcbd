import type { Draw } from '@flashmla/spec'

/** Share of the whole within which a random number or a cut is too near to another token to tell, for probabilities that may be off by 1e-8. */
const NEAR = 1e-6

/** A token drawn by sorting all, and whether it is doubtful: the random number or a cut came within `near` of another token's share. */
export function drawBySorting(logits: Float32Array, draw: Draw, near = NEAR): { token: number; doubtful: boolean } {
  const [temperature, topP, minP] = [draw.temperature, draw.topP, draw.minP].map(Math.fround) as [
    number,
    number,
    number,
  ]
  const { topK, random } = draw
  const largest = logits.reduce((a, b) => Math.max(a, b), -Infinity)
  if (temperature === 0 || largest === Infinity) return { token: logits.indexOf(largest), doubtful: false }
  const floor = minP > 0 ? largest + temperature * Math.log(minP) : -Infinity
  let doubtful = minP > 0 && logits.some((logit) => Math.abs(logit - floor) < near * temperature)
  const order = [...logits.keys()].filter((i) => logits[i]! >= floor && logits[i]! > -Infinity)
  if (topK > 0 || topP < 1) order.sort((a, b) => logits[b]! - logits[a]! || a - b)
  if (topK > 0) order.length = Math.min(order.length, topK)
  const powers = order.map((i) => Math.exp((logits[i]! - largest) / temperature))
  const total = powers.reduce((a, b) => a + b, 0)
  let [kept, mass] = [0, 0]
  while (kept < order.length && (kept === 0 || mass < topP * total)) {
    if (kept > 0) doubtful ||= Math.abs(mass - topP * total) < near * total
    mass += powers[kept++]!
  }
  doubtful ||= kept < order.length && Math.abs(mass - topP * total) < near * total
  let below = 0
  for (let i = 0; i < kept; i++) {
    below += powers[i]!
    if (random * mass >= below) continue
    const margin = Math.min(below - random * mass, random * mass - (below - powers[i]!))
    return { token: order[i]!, doubtful: doubtful || (margin < near * mass && kept > 1) }
  }
  return { token: order[kept - 1]!, doubtful: true }
}
