/**
 * A token of a row of logits by a row of `Backend.sample`'s draws, found by sorting all: the order is that of the tokens without a cut by topK or topP.
 * -1 when the logits are not numbers, or all are -Infinity.
 */
export function drawToken(logits: Float32Array, draw: Float32Array): number {
  const [temperature, topK, topP, minP, high, low] = draw
  const random = high! + low!
  let largest = -Infinity
  for (const logit of logits) {
    if (Number.isNaN(logit)) return -1
    if (logit > largest) largest = logit
  }
  if (largest === -Infinity) return -1
  if (temperature === 0 || largest === Infinity) return logits.indexOf(largest)
  const floor = minP! > 0 ? largest + temperature! * Math.log(minP!) : -Infinity
  const order: number[] = []
  for (const [token, logit] of logits.entries()) if (logit >= floor && logit > -Infinity) order.push(token)
  if (topK! > 0 || topP! < 1) order.sort((a, b) => logits[b]! - logits[a]! || a - b)
  if (topK! > 0) order.length = Math.min(order.length, topK!)
  const powers = order.map((token) => Math.exp((logits[token]! - largest) / temperature!))
  const total = powers.reduce((sum, power) => sum + power, 0)
  let kept = 0
  let mass = 0
  while (kept < order.length && (kept === 0 || mass < topP! * total)) mass += powers[kept++]!
  let target = random * mass
  for (let i = 0; i < kept; i++) {
    target -= powers[i]!
    if (target < 0) return order[i]!
  }
  return order[kept - 1]!
}
