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
 * µs on an H100, fitted to the medians of benchmarks/gpu/time_linear.py: a step with few rows and with a full tile where other
 * multiprocessors rest, and the end of a tile by the blocks of a cluster. The choice costs 0.5 % on average over the best one there, 6 % at most.
 */
const TILES = [
  { rows: 64, outputs: 64, few: 0.36, full: 0.42, ends: [0.5, 0.7, 0.3, 0.5] },
  { rows: 64, outputs: 128, few: 0.45, full: 0.52, ends: [0.7, 1.1, 1.1, 2.1] },
  { rows: 64, outputs: 256, few: 0.83, full: 0.84, ends: [0.7, 2.4, 3.3, 5.4] },
  { rows: 128, outputs: 256, few: 1.65, full: 1.69, ends: [0, 3.1, 3.4, 4.1] },
] as const
/** From a launch to the first step, and from the last rows to the next launch. */
const LAUNCH = 4
/** What a step takes longer when all multiprocessors work. */
const CROWDED = 0.22
/** Bytes of weights that memory brings in a µs. */
const READ = 2.95e6
/** Share of the multiprocessors that clusters reach: groups of 16 or 18 don't divide by four and eight. */
const REACHED = { 1: 1, 2: 1, 4: 120 / 132, 8: 120 / 132 } as const

/** The fastest tiles for bf16 weights `[heads, o, i]` and n rows, by an estimate. */
export function chooseTiles({ n, o, i, heads }: ProductShape, { device }: Pick<Context, 'device'>): TileChoice {
  const steps = Math.max(Math.ceil(i / STEP), 1)
  const fill = Math.min(n, 64) / 64
  const reading = LAUNCH + (heads * o * i * 2) / READ
  let best: TileChoice | undefined
  for (const { rows, outputs, few, full, ends } of TILES) {
    const tiles = Math.ceil(n / rows) * Math.ceil(o / outputs) * heads
    for (const [at, cluster] of CLUSTERS.entries()) {
      if (cluster > steps) break
      const blocks = tiles * cluster
      const waves = Math.ceil(blocks / Math.max(Math.floor(device.multiprocessors * REACHED[cluster]), 1))
      const step = (few + (full - few) * fill) * (1 + CROWDED * Math.min(1, blocks / device.multiprocessors))
      const end = ends[at]! * (0.3 + 0.7 * fill)
      const time = Math.max(LAUNCH + waves * (Math.ceil(steps / cluster) * step + end), reading)
      if (!best || time < best.time) best = { symbol: `mla_linear_${rows}x${outputs}`, rows, outputs, cluster, time }
    }
  }
  return best!
}

/** The same for one row and a warp for each output: bound by memory, or by a warp's walk through its row. */
export const timeOfOneRow = ({ o, i, heads }: ProductShape): number =>
  3.5 + Math.max((heads * o * i * 2) / 2.75e6, i * 1.4e-3)
