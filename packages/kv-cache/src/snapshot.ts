import { InvalidArgumentError } from '@flashmla/spec'
import type { BlockPoolState } from './block-pool'
import type { SequenceState } from './cached-sequence'
import type { BlockColumns } from './columns'
import { blockColumns } from './columns'
import type { SaltsState } from './salts'

export interface CacheState {
  readonly pageSize: number
  readonly tick: number
  readonly evictions: number
  readonly hits: number
  readonly misses: number
  readonly nextId: number
  readonly salts: SaltsState
  readonly sequences: readonly SequenceState[]
  readonly pool: BlockPoolState
  readonly columns: BlockColumns
}

type Header = Omit<CacheState, 'pool' | 'columns'> & { numBlocks: number; numUnused: number }

const magic = 'flashmla-kv-cache 1'

/*
 * Layout: the magic line, a line with the checksum and the length of the header, the header as JSON, then the arrays as they stand in memory
 * (little-endian on every platform Node runs on): references, free blocks, and the columns in order.
 */
export function encodeState(state: CacheState): Uint8Array {
  const { pool, columns, ...rest } = state
  const header: Header = { ...rest, numBlocks: pool.references.length, numUnused: pool.free.length }
  const json = new TextEncoder().encode(JSON.stringify(header))
  const body = concat([json, ...[pool.references, pool.free, ...Object.values(columns)].map(bytesOf)])
  return concat([new TextEncoder().encode(`${magic} ${checksum(body)} ${json.length}\n`), body])
}

/** @throws InvalidArgumentError when the bytes are not what encodeState wrote, to the last one */
export function decodeState(bytes: Uint8Array): CacheState {
  const end = bytes.subarray(0, 80).indexOf(10)
  const line = new TextDecoder().decode(bytes.subarray(0, Math.max(0, end)))
  const [sum, length] = line.startsWith(`${magic} `) ? line.slice(magic.length + 1).split(' ') : []
  const body = bytes.subarray(end + 1)
  const header =
    sum !== undefined && Number(sum) === checksum(body) ? headerOf(body.subarray(0, Number(length))) : undefined
  if (!header) {
    throw new InvalidArgumentError(
      `${bytes.length} bytes are not a saved cache.`,
      'Pass the bytes that save() returned, whole and unchanged.',
    )
  }
  const { numBlocks, numUnused, ...rest } = header
  const pool = { references: new Int32Array(numBlocks), free: new Int32Array(numUnused) }
  const columns = blockColumns(numBlocks, rest.pageSize)
  let at = Number(length)
  for (const array of [pool.references, pool.free, ...Object.values(columns)]) {
    const target = bytesOf(array)
    target.set(body.subarray(at, at + target.length))
    at += target.length
  }
  return { ...rest, pool, columns }
}

/** Undefined for bytes that are no header: the length in the line before, which no checksum covers, is wrong. */
function headerOf(bytes: Uint8Array): Header | undefined {
  try {
    return JSON.parse(new TextDecoder().decode(bytes))
  } catch {
    return undefined
  }
}

function bytesOf(array: Int32Array | Uint32Array | Uint8Array | Float64Array): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength)
}

function concat(parts: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0))
  let at = 0
  for (const part of parts) {
    whole.set(part, at)
    at += part.length
  }
  return whole
}

/** FNV-1a of 32 bits. */
function checksum(bytes: Uint8Array): number {
  let hash = 0x811c9dc5
  for (let i = 0; i < bytes.length; i++) hash = Math.imul(hash ^ bytes[i]!, 0x01000193)
  return hash >>> 0
}
