import type { CacheFormat } from '@flashmla/spec'
import { InvalidArgumentError } from '@flashmla/spec'
import type { MlaConfig } from './config'
import { bf16Format, f32Format } from './formats'
import { fp8V4Format, fp8V32Format } from './fp8-formats'

export interface CapacityOptions {
  /** Bytes that the cache may take. Without it no token counts. */
  readonly memoryBytes?: number
  /** Key-value heads of the grouped-query cache compared with; 8, or all heads where there are fewer. */
  readonly groupedQueryHeads?: number
}

export interface CapacityRow {
  /** A cache format's name, or the plain cache compared with. */
  readonly name: string
  readonly kind: 'latent' | 'multi-head' | 'grouped-query'
  /** Over all layers. */
  readonly bytesPerToken: number
  readonly bytesPerTokenPerLayer: number
  /** How many times smaller than the bf16 multi-head cache. */
  readonly timesSmaller: number
  /** Whole tokens that fit `memoryBytes`. */
  readonly tokens: number | undefined
}

type Dimensions = Pick<
  MlaConfig,
  'numLayers' | 'numHeads' | 'kvLoraRank' | 'qkNopeHeadDim' | 'qkRopeHeadDim' | 'vHeadDim'
>

/** The formats whose rows are as wide as the model's, the densest last. */
export function formatsFor({ kvLoraRank, qkRopeHeadDim }: Dimensions): readonly CacheFormat[] {
  const fixed = [fp8V32Format, fp8V4Format].filter(
    (format) => format.kvLoraRank === kvLoraRank && format.ropeDim === qkRopeHeadDim,
  )
  return [f32Format(kvLoraRank, qkRopeHeadDim), bf16Format(kvLoraRank, qkRopeHeadDim), ...fixed]
}

/**
 * Bytes per token of each cache format against plain bf16 caches of the same model: full keys (nope + rope) and values for
 * every head, or for every key-value head of a grouped-query variant.
 * @throws InvalidArgumentError when memory or heads are no amounts
 */
export function cacheCapacity(config: Dimensions, options: CapacityOptions = {}): readonly CapacityRow[] {
  const { memoryBytes, groupedQueryHeads = Math.min(8, config.numHeads) } = options
  if (memoryBytes !== undefined && !(memoryBytes >= 0 && Number.isFinite(memoryBytes))) {
    throw new InvalidArgumentError(`memoryBytes is ${memoryBytes}.`, 'Give a number of bytes ≥ 0.')
  }
  if (!Number.isInteger(groupedQueryHeads) || groupedQueryHeads < 1 || groupedQueryHeads > config.numHeads) {
    throw new InvalidArgumentError(
      `groupedQueryHeads is ${groupedQueryHeads}, of ${config.numHeads} heads.`,
      'Give a whole number from 1 to the number of heads.',
    )
  }
  const headBytes = 2 * (config.qkNopeHeadDim + config.qkRopeHeadDim + config.vHeadDim)
  const multiHead = config.numHeads * headBytes
  const row = (name: string, kind: CapacityRow['kind'], perLayer: number): CapacityRow => ({
    name,
    kind,
    bytesPerToken: perLayer * config.numLayers,
    bytesPerTokenPerLayer: perLayer,
    timesSmaller: multiHead / perLayer,
    tokens: memoryBytes === undefined ? undefined : Math.floor(memoryBytes / (perLayer * config.numLayers)),
  })
  return [
    row(`multi-head, ${config.numHeads} heads`, 'multi-head', multiHead),
    row(`grouped-query, ${groupedQueryHeads} heads`, 'grouped-query', groupedQueryHeads * headBytes),
    ...formatsFor(config).map((format) => row(format.name, 'latent', format.bytesPerToken)),
  ]
}

/** The rows as a table of plain text, one line each under a heading, columns aligned. */
export function capacityTable(rows: readonly CapacityRow[]): string {
  const counted = rows.some(({ tokens }) => tokens !== undefined)
  const cells = [
    ['cache', 'bytes/token', 'per layer', 'smaller', ...(counted ? ['tokens'] : [])],
    ...rows.map((row) => [
      row.name,
      group(row.bytesPerToken),
      group(row.bytesPerTokenPerLayer),
      `${row.timesSmaller.toFixed(1)}×`,
      ...(counted ? [row.tokens === undefined ? '' : group(row.tokens)] : []),
    ]),
  ]
  const widths = cells[0]!.map((_, column) => Math.max(...cells.map((line) => line[column]!.length)))
  return cells
    .map((line) =>
      line
        .map((cell, column) => (column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!)))
        .join('  ')
        .trimEnd(),
    )
    .join('\n')
}

/** 70272 → 70,272 */
function group(value: number): string {
  return String(value).replace(/\B(?=(\d{3})+$)/g, ',')
}
