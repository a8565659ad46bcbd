import { FlashMlaError } from '@flashmla/spec'
import type { ContentfulStatusCode } from 'hono/utils/http-status'

/** An answer in OpenAI's error shape. */
export class HttpError extends Error {
  constructor(
    readonly status: ContentfulStatusCode,
    message: string,
    readonly details: { readonly code?: string; readonly param?: string; readonly retryAfter?: number } = {},
  ) {
    super(message)
  }

  get body() {
    const { code = null, param = null } = this.details
    return { error: { message: this.message, type: typeOf(this.status), param, code } }
  }
}

function typeOf(status: number): string {
  if (status === 401) return 'authentication_error'
  if (status === 429) return 'rate_limit_error'
  return status >= 500 ? 'server_error' : 'invalid_request_error'
}

/** What a client is told of an error. Only errors of this project's own kinds show their message. */
export function toHttpError(error: unknown): HttpError {
  if (error instanceof HttpError) return error
  if (FlashMlaError.isInstance(error)) {
    const { code, message } = error
    if (code === 'queue_full') return new HttpError(429, message, { code, retryAfter: 1 })
    if (code === 'deadline') return new HttpError(408, message, { code })
    if (code === 'aborted' || code === 'disposed') return new HttpError(503, message, { code, retryAfter: 1 })
    if (code === 'invalid_argument' || code === 'unsupported') return new HttpError(400, message, { code })
  }
  return new HttpError(500, 'The server failed to answer this request. Its log says why.', { code: 'internal_error' })
}
