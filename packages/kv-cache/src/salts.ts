import { hashSalt } from './hash'

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
      salt = { text, id: this.#next++, hash: hashSalt(text), users: 0 }
      this.#byText.set(text, salt)
      this.#byId.set(salt.id, salt)
    }
    salt.users++
    return salt.id
  }

  retain(id: number): void {
    this.#byId.get(id)!.users++
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
