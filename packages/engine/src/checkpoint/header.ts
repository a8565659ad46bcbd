import type { FileHandle } from 'node:fs/promises'
import { CheckpointError } from '@flashmla/spec'
import { readRange } from './read-range'

/** The dtypes that are read. Entries of others are kept, so that asking for one can say what it is. */
export type StoredDType = 'F32' | 'F16' | 'BF16' | 'F8_E4M3'

/** Where one tensor lies. */
export interface Entry {
  readonly file: string
  readonly dtype: StoredDType | (string & {})
  readonly shape: readonly number[]
  /** Byte of the file. */
  readonly start: number
  readonly bytes: number
}

const widths: Record<StoredDType, number> = { F32: 4, F16: 2, BF16: 2, F8_E4M3: 1 }

/** The format's own limit: https://huggingface.co/docs/safetensors, "header size is limited to 100 MB". */
const MAX_HEADER = 100_000_000

/**
 * Reads and checks the header of one safetensors file: 8 bytes of length, JSON, then the tensors back to back.
 * @throws CheckpointError that names the file, and the tensor whose offsets, shape or bytes don't add up
 */
export async function readHeader(file: string, handle: FileHandle): Promise<Map<string, Entry>> {
  const stat = await handle.stat()
  if (!stat.isFile())
    throw new CheckpointError({ file, fact: 'it is no file.', hint: 'Put the safetensors file in its place.' })
  const { size } = stat
  if (size < 8)
    throw new CheckpointError({ file, fact: `${size} bytes are too few for a safetensors file: it is truncated.` })
  const prefix = new Uint8Array(8)
  await readRange({ file }, handle, prefix, 0)
  const length = new DataView(prefix.buffer).getBigUint64(0, true)
  if (length > MAX_HEADER)
    throw new CheckpointError({ file, fact: `it claims a header of ${length} bytes, the format allows ${MAX_HEADER}.` })
  const begin = 8 + Number(length)
  if (begin > size)
    throw new CheckpointError({ file, fact: `a header of ${length} bytes does not fit a file of ${size}.` })
  const text = new Uint8Array(Number(length))
  await readRange({ file }, handle, text, 8)

  const entries = new Map<string, Entry>()
  let end = 0
  for (const [name, stored] of parse(file, text)) {
    const fail = (fact: string) => new CheckpointError({ file, tensor: name, fact })
    if (!isStored(stored)) throw fail(`its entry ${JSON.stringify(stored)} lacks a dtype, a shape or two data_offsets.`)
    const [start, stop] = stored.data_offsets
    if (stop < start) throw fail(`its offsets [${start}, ${stop}] run backwards.`)
    if (start < end)
      throw fail(`it starts at byte ${start} of the data and overlaps the tensor before, which ends at ${end}.`)
    if (start > end) throw fail(`it starts at byte ${start} of the data, the tensor before ends at ${end}: a gap.`)
    if (begin + stop > size) throw fail(`it ends at byte ${begin + stop} of a file of ${size}: the file is truncated.`)
    end = stop
    const width = widths[stored.dtype as StoredDType]
    const bytes = width === undefined ? stop - start : stored.shape.reduce((product, dim) => product * dim, width)
    if (bytes !== stop - start)
      throw fail(`${stop - start} bytes don't hold ${stored.dtype} [${stored.shape}], which takes ${bytes}.`)
    entries.set(name, { file, dtype: stored.dtype, shape: stored.shape, start: begin + start, bytes })
  }
  if (begin + end !== size)
    throw new CheckpointError({ file, fact: `${size - begin - end} bytes after its last tensor belong to none.` })
  return entries
}

interface Stored {
  readonly dtype: string
  readonly shape: readonly number[]
  readonly data_offsets: readonly [number, number]
}

/** The header's tensors by their place in the file. */
function parse(file: string, text: Uint8Array): [string, unknown][] {
  let json: unknown
  try {
    json = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(text))
  } catch (cause) {
    throw new CheckpointError({ file, fact: 'its header is not JSON.', cause })
  }
  if (typeof json !== 'object' || json === null || Array.isArray(json))
    throw new CheckpointError({ file, fact: 'its header is not a JSON object.' })
  const offset = (entry: unknown, i: 0 | 1) => (entry as Partial<Stored> | null)?.data_offsets?.[i] ?? 0
  // A tensor without elements begins where the next one does: their ends decide.
  return Object.entries(json)
    .filter(([name]) => name !== '__metadata__')
    .sort(([, a], [, b]) => offset(a, 0) - offset(b, 0) || offset(a, 1) - offset(b, 1))
}

function isStored(entry: unknown): entry is Stored {
  const { dtype, shape, data_offsets } = (entry ?? {}) as Partial<Stored>
  const wholes = (list: unknown): list is number[] =>
    Array.isArray(list) && list.every((value) => Number.isSafeInteger(value) && value >= 0)
  return typeof dtype === 'string' && wholes(shape) && wholes(data_offsets) && data_offsets.length === 2
}
