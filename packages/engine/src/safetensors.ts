import type { FileHandle } from 'node:fs/promises'
import { open, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { bf16ToFloat, halfToFloat } from '@flashmla/latent'
import type { WeightSource } from '@flashmla/spec'
import { CheckpointError } from '@flashmla/spec'

interface Entry {
  readonly file: string
  readonly dtype: WeightSource['dtype']
  readonly shape: readonly number[]
  readonly start: number
  readonly bytes: number
}

const dtypes: Record<string, WeightSource['dtype']> = { F32: 'f32', F16: 'f16', BF16: 'bf16' }
const widths = { f32: 4, f16: 2, bf16: 2 }

/** A checkpoint of one or more safetensors files, read by range: opening reads headers only. */
export class Checkpoint {
  private constructor(
    readonly directory: string,
    private readonly entries: ReadonlyMap<string, Entry>,
    private readonly handles: ReadonlyMap<string, FileHandle>,
  ) {}

  /** Opens model.safetensors.index.json's shards, or model.safetensors. Every header is checked before any tensor is read. */
  static async open(directory: string): Promise<Checkpoint> {
    const entries = new Map<string, Entry>()
    const handles = new Map<string, FileHandle>()
    try {
      for (const file of await listShards(directory)) {
        const path = join(directory, file)
        const handle = await open(path).catch((cause) => {
          throw new CheckpointError({ file: path, fact: "the file can't be opened.", cause })
        })
        handles.set(path, handle)
        for (const [name, entry] of await readHeader(path, handle)) entries.set(name, entry)
      }
      return new Checkpoint(directory, entries, handles)
    } catch (error) {
      await Promise.all([...handles.values()].map((handle) => handle.close()))
      throw error
    }
  }

  get names(): readonly string[] {
    return [...this.entries.keys()]
  }

  /** Sum of the tensors' bytes. */
  get bytes(): number {
    let sum = 0
    for (const entry of this.entries.values()) sum += entry.bytes
    return sum
  }

  /** The tensor as a weight source, checked against `shape`. @throws CheckpointError when it is missing or of another shape */
  source(name: string, shape: readonly number[]): WeightSource {
    const entry = this.entries.get(name)
    if (!entry) throw new CheckpointError({ file: this.directory, tensor: name, fact: 'the tensor is missing.' })
    if (entry.shape.join() !== shape.join()) {
      throw new CheckpointError({
        file: entry.file,
        tensor: name,
        fact: `its shape is [${entry.shape}], config.json makes it [${shape}].`,
      })
    }
    return { name, dtype: entry.dtype, shape, read: (target) => this.#fill(name, entry, target) }
  }

  /** Reads one tensor as float32. */
  async read(name: string, shape: readonly number[]): Promise<Float32Array<ArrayBuffer>> {
    const { dtype, read } = this.source(name, shape)
    const bytes = new Uint8Array(shape.reduce((a, b) => a * b, widths[dtype]))
    await read(bytes)
    return toFloat32(bytes, dtype)
  }

  async #fill(name: string, entry: Entry, target: Uint8Array): Promise<void> {
    let done = 0
    while (done < entry.bytes) {
      const { bytesRead } = await this.handles
        .get(entry.file)!
        .read(target, done, Math.min(entry.bytes - done, 1 << 30), entry.start + done)
      if (bytesRead === 0)
        throw new CheckpointError({ file: entry.file, tensor: name, fact: 'the file ends inside the tensor.' })
      done += bytesRead
    }
  }

  async close(): Promise<void> {
    await Promise.all([...this.handles.values()].map((handle) => handle.close()))
  }
}

async function listShards(directory: string): Promise<string[]> {
  const index = join(directory, 'model.safetensors.index.json')
  const text = await readFile(index, 'utf8').catch(() => undefined)
  if (text === undefined) return ['model.safetensors']
  try {
    return [...new Set(Object.values(JSON.parse(text).weight_map as Record<string, string>))]
  } catch (cause) {
    throw new CheckpointError({ file: index, fact: 'it is not a JSON object with a weight_map.', cause })
  }
}

async function readHeader(path: string, handle: FileHandle): Promise<Map<string, Entry>> {
  const { size } = await handle.stat()
  const prefix = new DataView(new ArrayBuffer(8))
  await handle.read(prefix, 0, 8, 0)
  const length = Number(prefix.getBigUint64(0, true))
  if (size < 8 || length > size - 8)
    throw new CheckpointError({ file: path, fact: `a header of ${length} bytes does not fit a file of ${size}.` })
  const header = new Uint8Array(length)
  await handle.read(header, 0, length, 8)
  let json: Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>
  try {
    json = JSON.parse(new TextDecoder().decode(header))
  } catch (cause) {
    throw new CheckpointError({ file: path, fact: 'its header is not JSON.', cause })
  }
  const entries = new Map<string, Entry>()
  let end = 0
  const ordered = Object.entries(json)
    .filter(([name]) => name !== '__metadata__')
    .sort(([, a], [, b]) => a.data_offsets?.[0] - b.data_offsets?.[0])
  for (const [name, { dtype, shape, data_offsets }] of ordered) {
    const fail = (fact: string) => new CheckpointError({ file: path, tensor: name, fact })
    const type = dtypes[dtype]
    if (type === undefined) throw fail(`dtype ${dtype} is not known; known are ${Object.keys(dtypes).join(', ')}.`)
    const [start, stop] = data_offsets
    if (start !== end) throw fail(`it starts at byte ${start}, the one before ends at ${end}.`)
    if (stop - start !== shape.reduce((a, b) => a * b, widths[type]))
      throw fail(`${stop - start} bytes don't hold ${dtype} [${shape}].`)
    if (8 + length + stop > size)
      throw fail(`it ends at byte ${8 + length + stop} of a file of ${size}: the file is truncated.`)
    end = stop
    entries.set(name, { file: path, dtype: type, shape, start: 8 + length + start, bytes: stop - start })
  }
  return entries
}

function toFloat32(bytes: Uint8Array<ArrayBuffer>, dtype: WeightSource['dtype']): Float32Array<ArrayBuffer> {
  if (dtype === 'f32') return new Float32Array(bytes.buffer)
  const words = new Uint16Array(bytes.buffer)
  const out = new Float32Array(words.length)
  for (let i = 0; i < words.length; i++) out[i] = dtype === 'bf16' ? bf16ToFloat(words[i]!) : halfToFloat(words[i]!)
  return out
}
