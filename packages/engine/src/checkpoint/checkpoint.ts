import type { FileHandle } from 'node:fs/promises'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { bf16ToFloat, halfToFloat } from '@flashmla/latent'
import type { WeightSource } from '@flashmla/spec'
import { CheckpointError } from '@flashmla/spec'
import { dequantizeRows, FP8_BLOCK } from './fp8-block'
import type { Entry } from './header'
import { readHeader } from './header'
import { readText } from './json-file'
import { readRange } from './read-range'

const dtypes: Readonly<Record<string, WeightSource['dtype']>> = { F32: 'f32', F16: 'f16', BF16: 'bf16', F8_E4M3: 'f32' }

/** A checkpoint of one or more safetensors files, read by range: opening reads headers only. */
export class Checkpoint {
  private constructor(
    readonly directory: string,
    private readonly entries: ReadonlyMap<string, Entry>,
    private readonly handles: ReadonlyMap<string, FileHandle>,
  ) {}

  /**
   * Opens the shards of model.safetensors.index.json, or model.safetensors. Every header is checked before any tensor is read.
   * @throws CheckpointError that names the file and tensor at fault
   */
  static async open(directory: string): Promise<Checkpoint> {
    const entries = new Map<string, Entry>()
    const handles = new Map<string, FileHandle>()
    try {
      const shards = await listShards(directory)
      for (const [file, promised] of shards) {
        const path = join(directory, file)
        const handle = await open(path).catch((cause) => {
          throw new CheckpointError({
            file: path,
            fact: "the file can't be opened.",
            hint: 'Download every shard that model.safetensors.index.json names, and check that this user may read them.',
            cause,
          })
        })
        handles.set(path, handle)
        const found = await readHeader(path, handle)
        for (const name of promised) {
          if (!found.has(name))
            throw new CheckpointError({
              file: path,
              tensor: name,
              fact: 'the index places it here, the file lacks it.',
            })
        }
        for (const [name, entry] of found) {
          const other = entries.get(name)
          if (other) throw new CheckpointError({ file: path, tensor: name, fact: `it is in ${other.file} too.` })
          entries.set(name, entry)
        }
      }
      return new Checkpoint(directory, entries, handles)
    } catch (error) {
      await Promise.all([...handles.values()].map((handle) => handle.close()))
      throw error
    }
  }

  /** Names of the weights; the scales of block-quantized ones are not counted as weights. */
  get names(): readonly string[] {
    return [...this.entries.keys()].filter((name) => !name.endsWith('.weight_scale_inv'))
  }

  /** Sum of the tensors' bytes on disk. */
  get bytes(): number {
    let sum = 0
    for (const entry of this.entries.values()) sum += entry.bytes
    return sum
  }

  /**
   * The tensor as a weight source, checked against `shape` before anything is read. F8_E4M3 comes out as float32, its
   * 128 × 128 blocks multiplied by `<name>_scale_inv`.
   * @throws CheckpointError when it or its scale is missing or of another shape
   */
  source(name: string, shape: readonly number[]): WeightSource {
    const entry = this.#entry(name, shape)
    const dtype = dtypes[entry.dtype]
    if (!dtype) {
      const known = Object.keys(dtypes).join(', ')
      throw new CheckpointError({
        file: entry.file,
        tensor: name,
        fact: `its dtype ${entry.dtype} is not read; ${known} are.`,
        hint: 'Use the checkpoint in one of these.',
      })
    }
    if (entry.dtype !== 'F8_E4M3') return { name, dtype, shape, read: (target) => this.#fill(name, entry, target, 0) }
    if (shape.length !== 2)
      throw new CheckpointError({ file: entry.file, tensor: name, fact: `F8_E4M3 [${shape}] is not a matrix.` })
    const scaleShape = shape.map((dim) => Math.ceil(dim / FP8_BLOCK))
    const scale = this.#entry(`${name}_scale_inv`, scaleShape)
    if (scale.dtype !== 'F32')
      throw new CheckpointError({
        file: scale.file,
        tensor: `${name}_scale_inv`,
        fact: `it is ${scale.dtype}, not F32.`,
      })
    return { name, dtype: 'f32', shape, read: (target) => this.#dequantize(name, entry, scale, target) }
  }

  /** Reads one tensor as float32. */
  async read(name: string, shape: readonly number[]): Promise<Float32Array<ArrayBuffer>> {
    const { dtype, read } = this.source(name, shape)
    const size = shape.reduce((a, b) => a * b, 1)
    const bytes = new Uint8Array(size * (dtype === 'f32' ? 4 : 2))
    await read(bytes)
    if (dtype === 'f32') return new Float32Array(bytes.buffer)
    const words = new Uint16Array(bytes.buffer)
    const toFloat = dtype === 'bf16' ? bf16ToFloat : halfToFloat
    const out = new Float32Array(size)
    for (let i = 0; i < size; i++) out[i] = toFloat(words[i]!)
    return out
  }

  async close(): Promise<void> {
    await Promise.all([...this.handles.values()].map((handle) => handle.close()))
  }

  #entry(name: string, shape: readonly number[]): Entry {
    const entry = this.entries.get(name)
    if (!entry) throw new CheckpointError({ file: this.directory, tensor: name, fact: 'the tensor is missing.' })
    if (entry.shape.join() !== shape.join()) {
      throw new CheckpointError({
        file: entry.file,
        tensor: name,
        fact: `its shape is [${entry.shape}], config.json makes it [${shape}].`,
      })
    }
    return entry
  }

  /** Fills `target` from byte `offset` of the tensor on. */
  async #fill(name: string, entry: Entry, target: Uint8Array, offset: number): Promise<void> {
    const handle = this.handles.get(entry.file)!
    await readRange({ file: entry.file, tensor: name }, handle, target, entry.start + offset)
  }

  async #dequantize(name: string, entry: Entry, scale: Entry, target: Uint8Array): Promise<void> {
    const [rows, columns] = entry.shape as [number, number]
    const scales = new Uint8Array(scale.bytes)
    await this.#fill(`${name}_scale_inv`, scale, scales, 0)
    const scaleInv = new Float32Array(scales.buffer)
    const out = new Float32Array(target.buffer, target.byteOffset, rows * columns)
    const strip = new Uint8Array(Math.min(rows, FP8_BLOCK) * columns)
    for (let row = 0; row < rows; row += FP8_BLOCK) {
      const count = Math.min(FP8_BLOCK, rows - row)
      await this.#fill(name, entry, strip.subarray(0, count * columns), row * columns)
      dequantizeRows(out.subarray(row * columns), strip, scaleInv, row, count, columns)
    }
  }
}

/** Files of the checkpoint with the tensors that the index places in each. */
async function listShards(directory: string): Promise<Map<string, string[]>> {
  const index = join(directory, 'model.safetensors.index.json')
  const text = await readText(index)
  if (text === undefined) return new Map([['model.safetensors', []]])
  const shards = new Map<string, string[]>()
  try {
    for (const [name, file] of Object.entries(JSON.parse(text).weight_map as Record<string, string>)) {
      if (typeof file !== 'string' || !/^[^\\/]+\.safetensors$/.test(file))
        throw new TypeError(`${name} is placed in ${file}`)
      shards.set(file, [...(shards.get(file) ?? []), name])
    }
  } catch (cause) {
    throw new CheckpointError({ file: index, fact: 'it is not a JSON object with a weight_map of file names.', cause })
  }
  if (shards.size === 0) throw new CheckpointError({ file: index, fact: 'its weight_map is empty.' })
  return shards
}
