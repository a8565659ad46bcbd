/** Powers below e^-40 count as nothing: those of a whole vocabulary add up to less than a random number of 32 bits tells apart. */
export const NEGLIGIBLE = 40

const PARTS = 4096
/** 2^(j / 4096), and 2^-m: 40 / ln 2 is less than 58. */
const FRACTIONS = Float64Array.from({ length: PARTS }, (_, j) => 2 ** (j / PARTS))
const HALVINGS = Float64Array.from({ length: 64 }, (_, m) => 2 ** -m)
const STEP = Math.LN2 / PARTS
const STEPS = PARTS / Math.LN2

/** e^x for x from -40 to 0, to a relative 1e-12: a vocabulary takes a tenth of what it does with Math.exp. */
export function power(x: number): number {
  const steps = x * STEPS
  const whole = steps | 0
  const rest = (steps - whole) * STEP // of less than 1.7e-4
  return FRACTIONS[whole & (PARTS - 1)]! * HALVINGS[-(whole >> 12)]! * (1 + rest + 0.5 * rest * rest)
}
