import type { Context } from '../driver/context'

/** A way to multiply on Hopper: tiles of kernels/sm90/linear, and how many blocks, a cluster, share a tile's columns of x. */
export interface TileChoice {
  readonly symbol: string
  readonly rows: number
  readonly outputs: number
  readonly cluster: number
  /** Estimate, in µs. */
  readonly time: number
}

export interface ProductShape {
  readonly n: number
  readonly o: number
  readonly i: number
  readonly heads: number
}

/** Columns of x and of the weights that a block takes at a time. */
const STEP = 64
const CLUSTERS = [1, 2, 4, 8] as const

/**
 * µs on an H100, fitted to the medians of benchmarks/gpu/time_linear.py: a step where other multiprocessors rest, and the end of a tile by the blocks
 * of a cluster. What is chosen by them takes 0.3 % longer on average than the best choice there, 3 % at most.
 */
const TILES = [
  { rows: 64, outputs: 64, step: 0.31, ends: [0.5, 0.7, 0.8, 0.8] },
  { rows: 64, outputs: 128, step: 0.46, ends: [0.25, 1, 1.2, 1.4] },
  { rows: 64, outputs: 256, step: 0.83, ends: [0, 1.1, 2.1, 2.9] },
  { rows: 128, outputs: 256, step: 1.49, ends: [0.3, 1.5, 1.7, 2] },
] as const
/** Fewest outputs of a tile of two weights. */
const LEAST_GATED = 128
/** Share of an end that is there for a single row; the rest grows with the rows up to 64. */
const LEAST_END = 0.3
/** From a launch to the first step, and from the last rows to the next launch. */
const LAUNCH = 5.3
/** What a step and an end take longer when all multiprocessors work. */
const CROWDED = { step: 0.33, end: 3.8 } as const
/** Bytes of weights that memory brings in a µs. */
const READ = 2.9e6
/** Share of the multiprocessors that clusters reach: groups of 16 or 18 don't divide by four and eight. */
const REACHED = { 1: 1, 2: 1, 4: 120 / 132, 8: 120 / 132 } as const

/** The fastest tiles for bf16 weights `[heads, o, i]` and n rows, by an estimate. `gated`: o counts the outputs of both weights. */
export function chooseTiles(
  { n, o, i, heads }: ProductShape,
  { device }: Pick<Context, 'device'>,
  kind: 'linear' | 'gated' = 'linear',
): TileChoice {
  const steps = Math.max(Math.ceil(i / STEP), 1)
  const fill = Math.min(n, 64) / 64 // of a tile's rows
  const reading = LAUNCH + (heads * o * i * 2) / READ
  let best: TileChoice | undefined
  for (const { rows, outputs, step, ends } of TILES) {
    if (kind === 'gated' && outputs < LEAST_GATED) continue
    const tiles = Math.ceil(n / rows) * Math.ceil(o / outputs) * heads
    for (const [at, cluster] of CLUSTERS.entries()) {
      if (cluster > steps) break
      const blocks = tiles * cluster
      const waves = Math.ceil(blocks / Math.max(Math.floor(device.multiprocessors * REACHED[cluster]), 1))
      const busy = Math.min(1, blocks / device.multiprocessors)
      const end = ends[at]! * (LEAST_END + (1 - LEAST_END) * fill) * (1 + CROWDED.end * busy)
      const work = Math.ceil(steps / cluster) * step * (1 + CROWDED.step * busy)
      const time = Math.max(LAUNCH + waves * (work + end), reading)
      if (!best || time < best.time) best = { symbol: `mla_${kind}_${rows}x${outputs}`, rows, outputs, cluster, time }
    }
  }
  return best!
}

/** The same for one row and a warp for each output: bound by memory, or by a warp's walk through its row. */
export const timeOfOneRow = ({ o, i, heads }: ProductShape): number =>
  Math.max(2.3 + (heads * o * i * 2) / 2.75e6, 1.9 + i * 0.8e-3)

/** µs a column of x, of a block's walk, and bytes a µs, where up to 16 rows go by the tensor cores on weights as they are read. */
const MMA = [
  { symbol: 'mla_linear_mma_16x16', outputs: 16, launch: 2.3, walk: 1.9e-3, read: 2.15e6 },
  { symbol: 'mla_linear_mma_16x32', outputs: 32, launch: 3.5, walk: 3.1e-3, read: 2.35e6 },
] as const

/** The faster of the kernels for 2 to 16 rows, by the same measurements. */
export function chooseMma({ o, i, heads }: ProductShape): { symbol: string; outputs: number; time: number } {
  const [narrow, wide] = MMA.map(({ symbol, outputs, launch, walk, read }) => {
    return { symbol, outputs, time: Math.max(launch + i * walk, 3.5 + (heads * o * i * 2) / read) }
  }) as [ReturnType<typeof chooseMma>, ReturnType<typeof chooseMma>]
  return narrow.time <= wide.time ? narrow : wide
}
