import { InvalidArgumentError } from '@flashmla/spec'

/** `ptr`: a device address or null. All little-endian, each aligned to its own size. */
export type FieldType = 'ptr' | 'i64' | 'i32' | 'f32'

const SIZES: Record<FieldType, number> = { ptr: 8, i64: 8, i32: 4, f32: 4 }

export type Fields = Readonly<Record<string, FieldType>>

/** `ptr` null and 0 are the same address. */
type Value<T extends FieldType> = T extends 'ptr' ? bigint | null : number

export type Values<F extends Fields> = { readonly [K in keyof F]: Value<F[K]> }

/** A C struct without hidden padding: names and types in the header's order. */
export class Struct<F extends Fields> {
  readonly offsets: ReadonlyMap<keyof F & string, number>
  readonly bytes: number
  readonly #layout: readonly { readonly field: keyof F & string; readonly type: FieldType; readonly offset: number }[]

  constructor(
    readonly name: string,
    readonly fields: F,
  ) {
    const offsets = new Map<keyof F & string, number>()
    let offset = 0
    let widest = 1
    for (const [field, type] of Object.entries(fields)) {
      const size = SIZES[type]
      if (offset % size !== 0) throw new InvalidArgumentError(`${name}.${field} is padded.`, 'Reorder the fields.')
      offsets.set(field, offset)
      offset += size
      widest = Math.max(widest, size)
    }
    if (offset % widest !== 0) throw new InvalidArgumentError(`${name} ends in padding.`, 'Add a reserved field.')
    this.offsets = offsets
    this.bytes = offset
    this.#layout = [...offsets].map(([field, at]) => ({ field, type: fields[field]!, offset: at }))
  }

  /** Bytes in a buffer of their own, as a launch parameter needs. */
  allocate(values: Values<F>): Uint8Array {
    const target = new Uint8Array(new ArrayBuffer(this.bytes))
    this.write(target, values)
    return target
  }

  /** Rewrites some fields in place. */
  write(target: Uint8Array, values: Partial<Values<F>>): void {
    const view = new DataView(target.buffer, target.byteOffset, target.byteLength)
    for (const [field, value] of Object.entries(values)) {
      const offset = this.offsets.get(field)
      if (offset === undefined) throw new InvalidArgumentError(`${this.name} has no ${field}.`, 'Name a field of it.')
      put(view, this.fields[field]!, offset, value as bigint | number | null)
    }
  }

  /** Rewrites every field in place: what a launch that runs each step pays. */
  fill(view: DataView, values: Values<F>): void {
    for (const { field, type, offset } of this.#layout) put(view, type, offset, values[field])
  }
}

function put(view: DataView, type: FieldType, offset: number, value: bigint | number | null): void {
  if (type === 'ptr') view.setBigUint64(offset, (value as bigint | null) ?? 0n, true)
  else if (type === 'i32') view.setInt32(offset, value as number, true)
  else if (type === 'f32') view.setFloat32(offset, value as number, true)
  else {
    // Halves of a whole number: no bigint is made of it.
    view.setInt32(offset, value as number, true)
    view.setInt32(offset + 4, Math.floor((value as number) / 2 ** 32), true)
  }
}
