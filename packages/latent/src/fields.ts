import { InvalidConfigError } from '@flashmla/spec'

export type Json = Record<string, unknown>

/** Reads the fields of a JSON object, each with the error that names it. */
export class Fields {
  constructor(readonly json: Json) {}

  /** A finite number, or `fallback` when the field is missing or null. */
  number(field: string, fallback?: number): number {
    const value = this.json[field] ?? fallback
    if (typeof value !== 'number' || !Number.isFinite(value)) throw this.bad(field, 'a finite number is needed')
    return value
  }

  positive(field: string, fallback?: number): number {
    const value = this.number(field, fallback)
    if (value <= 0) throw this.bad(field, 'a number > 0 is needed')
    return value
  }

  /** A whole number ≥ `least`. */
  count(field: string, fallback?: number, least = 1): number {
    const value = this.number(field, fallback)
    if (!Number.isSafeInteger(value) || value < least) throw this.bad(field, `a whole number ≥ ${least} is needed`)
    return value
  }

  flag(field: string, fallback: boolean): boolean {
    const value = this.json[field] ?? fallback
    if (typeof value !== 'boolean') throw this.bad(field, 'true or false is needed')
    return value
  }

  oneOf<T extends string>(field: string, known: readonly T[], fallback: T): T {
    const value = this.json[field] ?? fallback
    if (!known.includes(value as T)) throw this.bad(field, `known are ${known.join(', ')}`)
    return value as T
  }

  bad(field: string, need: string): InvalidConfigError {
    return new InvalidConfigError(field, `${field} is ${JSON.stringify(this.json[field]) ?? 'missing'}; ${need}.`)
  }
}
