export interface Growth {
  readonly what: string
  /** Sizes, each twice the one before. */
  readonly sizes: readonly number[]
  readonly milliseconds: readonly number[]
  /** Largest ratio of a cost to the cost at half the size. */
  readonly worst: number
}

/** What a doubling may cost over twice as much and still count as linear. */
export const tolerance = 1.25

/** Times doublings of a size. */
export async function measureGrowth(
  what: string,
  sizes: readonly number[],
  time: (size: number) => Promise<number>,
): Promise<Growth> {
  const milliseconds: number[] = []
  for (const size of sizes) milliseconds.push(await time(size))
  const worst = Math.max(...milliseconds.slice(1).map((cost, i) => cost / milliseconds[i]!))
  return { what, sizes, milliseconds, worst }
}

/** False where a doubling cost more than twice as much, noise allowed. */
export const isLinear = ({ worst }: Growth): boolean => worst <= 2 * tolerance
