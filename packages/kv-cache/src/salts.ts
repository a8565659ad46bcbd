import { InvalidArgumentError } from '@flashmla/spec'
import { hashSalt } from './hash'

/** A block's parent column holds −1 − salt in 32 bits: numbers begin again at 0 where none is left. */
const MAX_SALTS = 2 ** 31

interface Salt {
  readonly text: string
  readonly id: number
  readonly hash: number
  users: number
}

export interface SaltsState {
  /** Number of the next new salt. */
  readonly next: number
  readonly used: readonly { readonly id: number; readonly text: string }[]
}

/** Numbers the salts in use, so that blocks compare them exactly. A salt lives while a sequence or a stored block uses it. */
export class Salts {
  readonly #byText = new Map<string, Salt>()
  readonly #byId = new Map<number, Salt>()
  #next = 0

  get size(): number {
    return this.#byId.size
  }

  find(text: string): number | undefined {
    return this.#byText.get(text)?.id
  }

  /** The salt's number; counts one more user. */
  acquire(text: string): number {
    let salt = this.#byText.get(text)
    if (!salt) {
      while (this.#byId.has(this.#next)) this.#next = (this.#next + 1) % MAX_SALTS
      salt = { text, id: this.#next, hash: hashSalt(text), users: 0 }
      this.#byText.set(text, salt)
      this.#byId.set(salt.id, salt)
      this.#next = (this.#next + 1) % MAX_SALTS
    }
    salt.users++
    return salt.id
  }

  /** @throws InvalidArgumentError for a number without a salt, as only a saved state may name */
  retain(id: number): void {
    const salt = this.#byId.get(id)
    if (!salt) {
      throw new InvalidArgumentError(
        `Salt ${id} is not among the ${this.size} known.`,
        'Load the bytes that save() returned.',
      )
    }
    salt.users++
  }

  release(id: number): void {
    const salt = this.#byId.get(id)!
    if (--salt.users > 0) return
    this.#byId.delete(id)
    this.#byText.delete(salt.text)
  }

  hash(id: number): number {
    return this.#byId.get(id)!.hash
  }

  text(id: number): string {
    return this.#byId.get(id)!.text
  }

  /** The salts in use, to save them. */
  state(): SaltsState {
    return { next: this.#next, used: [...this.#byId.values()].map(({ id, text }) => ({ id, text })) }
  }

  /** Takes up saved salts, without users. Only for an empty table. */
  restore(saved: SaltsState): void {
    this.#next = saved.next
    for (const { id, text } of saved.used) {
      const salt: Salt = { text, id, hash: hashSalt(text), users: 0 }
      this.#byText.set(text, salt)
      this.#byId.set(id, salt)
    }
  }

  users(id: number): number {
    return this.#byId.get(id)?.users ?? 0
  }
}
