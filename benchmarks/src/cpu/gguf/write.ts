import { floatToBf16 } from '@flashmla/latent'

/** Values of GGUF's metadata; the field names are those of the format's specification. */
export type MetadataValue =
  | { readonly type: 'uint32' | 'int32' | 'float32'; readonly value: number }
  | { readonly type: 'bool'; readonly value: boolean }
  | { readonly type: 'string'; readonly value: string }
  | { readonly type: 'strings'; readonly value: readonly string[] }
  | { readonly type: 'int32s'; readonly value: readonly number[] }

/** Tensor as GGUF stores it; `shape` is outermost first and turned round on writing. */
export interface GgufTensor {
  readonly name: string
  readonly dtype: 'f32' | 'bf16'
  readonly shape: readonly number[]
  /** Read when the tensor's turn comes, so that one tensor at a time is in memory. */
  readonly data: () => Promise<Float32Array>
}

const ALIGNMENT = 32
const typeCodes = { uint32: 4, int32: 5, float32: 6, bool: 7, string: 8, array: 9 } as const
const dtypes = { f32: { code: 0, bytes: 4 }, bf16: { code: 30, bytes: 2 } } as const

const align = (bytes: number) => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT
const sizeOf = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1)

function u32(value: number): Buffer {
  const out = Buffer.alloc(4)
  out.writeUInt32LE(value)
  return out
}

function u64(value: number): Buffer {
  const out = Buffer.alloc(8)
  out.writeBigUInt64LE(BigInt(value))
  return out
}

function i32(value: number): Buffer {
  const out = Buffer.alloc(4)
  out.writeInt32LE(value)
  return out
}

function string(value: string): Buffer {
  const text = Buffer.from(value)
  return Buffer.concat([u64(text.length), text])
}

function metadataValue(field: MetadataValue): Buffer {
  switch (field.type) {
    case 'uint32':
      return Buffer.concat([u32(typeCodes.uint32), u32(field.value)])
    case 'int32':
      return Buffer.concat([u32(typeCodes.int32), i32(field.value)])
    case 'float32': {
      const out = Buffer.alloc(4)
      out.writeFloatLE(field.value)
      return Buffer.concat([u32(typeCodes.float32), out])
    }
    case 'bool':
      return Buffer.concat([u32(typeCodes.bool), Buffer.from([field.value ? 1 : 0])])
    case 'string':
      return Buffer.concat([u32(typeCodes.string), string(field.value)])
    case 'strings':
      return Buffer.concat([
        u32(typeCodes.array),
        u32(typeCodes.string),
        u64(field.value.length),
        ...field.value.map(string),
      ])
    case 'int32s':
      return Buffer.concat([
        u32(typeCodes.array),
        u32(typeCodes.int32),
        u64(field.value.length),
        ...field.value.map(i32),
      ])
  }
}

function encode(tensor: GgufTensor, data: Float32Array): Buffer {
  const size = sizeOf(tensor.shape)
  if (data.length !== size) throw new RangeError(`${tensor.name} has ${data.length} values for [${tensor.shape}].`)
  const out = Buffer.alloc(align(size * dtypes[tensor.dtype].bytes))
  if (tensor.dtype === 'f32') for (let k = 0; k < size; k++) out.writeFloatLE(data[k]!, k * 4)
  else for (let k = 0; k < size; k++) out.writeUInt16LE(floatToBf16(data[k]!), k * 2)
  return out
}

/**
 * The bytes of a GGUF v3 file, a piece at a time: header, metadata, tensor directory, then each tensor padded to 32 bytes.
 * Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md.
 */
export async function* ggufChunks(
  metadata: ReadonlyMap<string, MetadataValue>,
  tensors: readonly GgufTensor[],
): AsyncGenerator<Buffer> {
  const head = [Buffer.from('GGUF'), u32(3), u64(tensors.length), u64(metadata.size)]
  for (const [key, value] of metadata) head.push(string(key), metadataValue(value))
  let offset = 0
  for (const { name, dtype, shape } of tensors) {
    const { code, bytes } = dtypes[dtype]
    head.push(string(name), u32(shape.length), ...[...shape].reverse().map(u64), u32(code), u64(offset))
    offset += align(sizeOf(shape) * bytes)
  }
  const header = Buffer.concat(head)
  yield Buffer.concat([header, Buffer.alloc(align(header.length) - header.length)])
  for (const tensor of tensors) yield encode(tensor, await tensor.data())
}
