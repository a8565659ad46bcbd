const marker = Symbol.for('flashmla.error')

export type ErrorCode =
  | 'invalid_argument'
  | 'invalid_config'
  | 'checkpoint'
  | 'out_of_pages'
  | 'unsupported'
  | 'disposed'
  | 'aborted'
  | 'queue_full'
  | 'deadline'
  | 'contract'
  | 'cuda'

/**
 * Base of every error this project throws. The first line of `message` states the fact with the offending values,
 * the second says what to do.
 */
export class FlashMlaError extends Error {
  readonly code: ErrorCode
  readonly hint: string

  constructor(options: { code: ErrorCode; fact: string; hint: string; cause?: unknown }) {
    super(`${options.fact}\n${options.hint}`, { cause: options.cause })
    this.name = new.target.name
    this.code = options.code
    this.hint = options.hint
    Object.defineProperty(this, marker, { value: true })
  }

  /** True for errors of any copy or version of this package. */
  static isInstance(error: unknown): error is FlashMlaError {
    return typeof error === 'object' && error !== null && marker in error
  }
}

/** A call's argument is outside what the call accepts. Nothing was changed. */
export class InvalidArgumentError extends FlashMlaError {
  constructor(fact: string, hint: string) {
    super({ code: 'invalid_argument', fact, hint })
  }
}

/** config.json lacks a field, or holds a value that is not a known MLA model's. */
export class InvalidConfigError extends FlashMlaError {
  readonly field: string
  constructor(field: string, fact: string, hint = 'Compare config.json with the one the model was published with.') {
    super({ code: 'invalid_config', fact, hint })
    this.field = field
  }
}

/** A checkpoint on disk can't be read: names the file and, where one is concerned, the tensor. */
export class CheckpointError extends FlashMlaError {
  readonly file: string
  readonly tensor: string | undefined
  constructor(options: { file: string; tensor?: string; fact: string; hint?: string; cause?: unknown }) {
    const where = options.tensor ? `${options.file}, tensor ${options.tensor}` : options.file
    super({
      code: 'checkpoint',
      fact: `${where}: ${options.fact}`,
      hint: options.hint ?? 'Download the file again, or compare its size and hash with the published ones.',
      cause: options.cause,
    })
    this.file = options.file
    this.tensor = options.tensor
  }
}

/** The block pool can't serve the call. Nothing was changed. */
export class OutOfPagesError extends FlashMlaError {
  readonly needed: number
  readonly available: number
  constructor(needed: number, available: number) {
    super({
      code: 'out_of_pages',
      fact: `${needed} pages are needed and ${available} are available.`,
      hint: 'Free a sequence, wait for one to end, or make the pool larger (numBlocks).',
    })
    this.needed = needed
    this.available = available
  }
}

/** The one error that lets a caller fall back to another backend or kernel. */
export class UnsupportedError extends FlashMlaError {
  constructor(fact: string, hint: string) {
    super({ code: 'unsupported', fact, hint })
  }
}

/** A resource was used after it was disposed of. */
export class DisposedError extends FlashMlaError {
  constructor(what: string) {
    super({
      code: 'disposed',
      fact: `${what} was used after it was disposed of.`,
      hint: 'Keep it alive until its last use.',
    })
  }
}

/** The caller gave the work up before it ended. What it held is free. */
export class AbortedError extends FlashMlaError {
  constructor(what: string) {
    super({ code: 'aborted', fact: `${what} was cancelled.`, hint: 'Submit it again if it is still wanted.' })
  }
}

/** Admission control refused a request: nothing was queued. */
export class QueueFullError extends FlashMlaError {
  readonly queued: number
  constructor(queued: number) {
    super({
      code: 'queue_full',
      fact: `${queued} requests are waiting already.`,
      hint: 'Try again later, or raise maxQueued.',
    })
    this.queued = queued
  }
}

/** A request's deadline passed before it ended. What it held is free. */
export class DeadlineError extends FlashMlaError {
  constructor(generated: number) {
    super({
      code: 'deadline',
      fact: `The deadline passed after ${generated} generated tokens.`,
      hint: 'Allow more time, or ask for fewer tokens.',
    })
  }
}
