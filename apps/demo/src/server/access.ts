import { createHash, timingSafeEqual } from 'node:crypto'
import { HttpError } from './errors'

/** Who asks: what logs may show, what separates the prefix caches, what concurrency is counted by. */
export interface Tenant {
  readonly id: string
  readonly salt: string
}

/** API keys and the requests that each has running. */
export class Access {
  readonly #keys: readonly { digest: Buffer; tenant: Tenant }[]
  readonly #running = new Map<string, number>()

  constructor(
    keys: readonly string[],
    private readonly maxConcurrent: number,
  ) {
    this.#keys = keys.map((key) => {
      const digest = sha256(key)
      return { digest, tenant: { id: digest.toString('hex').slice(0, 8), salt: digest.toString('hex') } }
    })
  }

  /**
   * The tenant of an Authorization header; every key is compared, each in constant time, so that timing tells nothing.
   * @throws HttpError 401
   */
  tenant(authorization: string | undefined): Tenant {
    if (this.#keys.length === 0) return { id: 'anyone', salt: '' }
    const given = sha256(/^Bearer (.+)$/i.exec(authorization ?? '')?.[1] ?? '')
    let found: Tenant | undefined
    for (const { digest, tenant } of this.#keys) if (timingSafeEqual(digest, given)) found = tenant
    if (!found)
      throw new HttpError(401, 'A valid API key is required: send "Authorization: Bearer KEY".', {
        code: 'invalid_api_key',
      })
    return found
  }

  /**
   * Counts a request of the tenant until the returned function is called.
   * @throws HttpError 429 past the limit
   */
  enter(tenant: Tenant): () => void {
    const running = this.#running.get(tenant.id) ?? 0
    if (running >= this.maxConcurrent)
      throw new HttpError(429, `This key has ${running} running already, which is its limit. Wait for one to end.`, {
        code: 'concurrency_limit',
        retryAfter: 1,
      })
    this.#running.set(tenant.id, running + 1)
    let left = false
    return () => {
      if (left) return
      left = true
      const now = this.#running.get(tenant.id)! - 1
      if (now === 0) this.#running.delete(tenant.id)
      else this.#running.set(tenant.id, now)
    }
  }

  get running(): number {
    return [...this.#running.values()].reduce((a, b) => a + b, 0)
  }
}

function sha256(text: string): Buffer {
  return createHash('sha256').update(text).digest()
}
