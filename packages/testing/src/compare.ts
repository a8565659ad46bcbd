import { FlashMlaError } from '@flashmla/spec'

/** A backend's result is not what the contract says. */
export class ContractError extends FlashMlaError {
  constructor(fact: string, hint = 'The backend, not the contract, is to be changed; the expected value is float64.') {
    super({ code: 'contract', fact, hint })
  }
}

/** An element is close when |a − e| ≤ abs or |a − e| ≤ rel · |e|; the whole when ‖a − e‖ / ‖e‖ ≤ l2 as well. */
export interface Tolerance {
  readonly abs: number
  readonly rel: number
  readonly l2: number
}

/** For float32 storage and accumulation. */
export const float32Tolerance: Tolerance = { abs: 2e-5, rel: 2e-5, l2: 1e-5 }

/**
 * Compares in this order: number of elements, places of NaN and ±Infinity, each element, relative L2.
 * @throws ContractError naming the worst place
 */
export function assertClose(
  what: string,
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  shape: readonly number[],
  tolerance: Tolerance = float32Tolerance,
): void {
  if (actual.length !== expected.length) {
    throw new ContractError(`${what} has ${actual.length} elements, not ${expected.length}.`)
  }
  const at = (i: number) => `${what}[${place(i, shape).join(', ')}]`
  for (let i = 0; i < expected.length; i++) {
    const [a, e] = [actual[i]!, expected[i]!]
    if ((!Number.isFinite(a) || !Number.isFinite(e)) && !Object.is(a, e)) {
      throw new ContractError(`${at(i)} is ${a}, not ${e}.`)
    }
  }
  let worst = -1
  let worstRatio = 1
  let errors = 0
  let norm = 0
  for (let i = 0; i < expected.length; i++) {
    const [a, e] = [actual[i]!, expected[i]!]
    if (!Number.isFinite(e)) continue
    const difference = Math.abs(a - e)
    errors += difference ** 2
    norm += e ** 2
    const ratio = difference / Math.max(tolerance.abs, tolerance.rel * Math.abs(e), Number.MIN_VALUE)
    if (ratio > worstRatio) {
      worst = i
      worstRatio = ratio
    }
  }
  if (worst >= 0) {
    const [a, e] = [actual[worst]!, expected[worst]!]
    throw new ContractError(
      `${at(worst)} is ${a}, not ${e}: off by ${Math.abs(a - e)}, ${worstRatio.toPrecision(3)} times the tolerance.`,
    )
  }
  const l2 = norm === 0 ? 0 : Math.sqrt(errors / norm)
  if (l2 > tolerance.l2) throw new ContractError(`${what} is off by ${l2} in relative L2, past ${tolerance.l2}.`)
}

/** @throws ContractError naming the first element that is not the same, bit for bit */
export function assertSame(what: string, actual: ArrayLike<number>, expected: ArrayLike<number>): void {
  if (actual.length !== expected.length) {
    throw new ContractError(`${what} has ${actual.length} elements, not ${expected.length}.`)
  }
  for (let i = 0; i < expected.length; i++) {
    if (!Object.is(actual[i], expected[i]))
      throw new ContractError(`${what}[${i}] is ${actual[i]}, not ${expected[i]}.`)
  }
}

/** @throws ContractError unless `call` throws, or rejects with, an error of `code` */
export async function assertThrows(what: string, code: FlashMlaError['code'], call: () => unknown): Promise<void> {
  try {
    await call()
  } catch (error) {
    if (FlashMlaError.isInstance(error) && error.code === code) return
    const got = FlashMlaError.isInstance(error) ? `the code ${error.code}` : String(error)
    throw new ContractError(`${what} threw ${got}, not a FlashMlaError with the code ${code}.`)
  }
  throw new ContractError(`${what} was accepted; an error with the code ${code} was due.`)
}

function place(index: number, shape: readonly number[]): number[] {
  const indices: number[] = []
  for (let d = shape.length - 1; d >= 0; d--) {
    indices.unshift(index % shape[d]!)
    index = Math.floor(index / shape[d]!)
  }
  return indices
}
