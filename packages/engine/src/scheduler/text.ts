import type { Vocabulary } from '../grammar/vocabulary'
import type { LlmEngine } from './engine'
import type { FinishEvent, GenerationRequest, TokenEvent } from './request'

export interface TextRequest extends Omit<GenerationRequest, 'shouldStop'> {
  /** Generation of a sample ends before the first of these that it writes. */
  readonly stop?: readonly string[]
}

export interface TextEvent extends TokenEvent {
  /** What became certain: may be empty, never splits a character, never holds a part of a stop string. */
  readonly text: string
}

export interface TextFinishEvent extends FinishEvent {
  /** What was held back until the end. */
  readonly text: string
}

/** The events of a request with their text. Leaving the loop early cancels the request. */
export function streamText(
  engine: LlmEngine,
  vocabulary: Vocabulary,
  request: TextRequest,
): AsyncIterable<TextEvent | TextFinishEvent> & { cancel(): void } {
  const { stop = [], ...rest } = request
  const assemblers = Array.from({ length: request.n ?? 1 }, () => new TextAssembler(vocabulary, stop))
  const handle = engine.submit({ ...rest, shouldStop: (index, token) => assemblers[index]!.push(token) })
  return {
    cancel: () => handle.cancel(),
    async *[Symbol.asyncIterator]() {
      for await (const event of handle) {
        const assembler = assemblers[event.index]!
        yield { ...event, text: event.type === 'token' ? assembler.shift() : assembler.flush() }
      }
    },
  }
}

/** Tokens to text: holds back an incomplete character, and what may be the beginning of a stop string. */
export class TextAssembler {
  readonly #decoder = new TextDecoder()
  readonly #pieces: string[] = []
  #pieceAt = 0
  #held = ''
  #stopped = false

  constructor(
    private readonly vocabulary: Vocabulary,
    private readonly stop: readonly string[],
  ) {}

  /** Takes the next token; true when a stop string is complete. */
  push(token: number): boolean {
    this.#held += this.#decoder.decode(this.vocabulary.bytes(token), { stream: true })
    const ends = this.stop.map((text) => this.#held.indexOf(text)).filter((at) => at >= 0)
    if (ends.length > 0) {
      this.#stopped = true
      this.#pieces.push(this.#held.slice(0, Math.min(...ends)))
      this.#held = ''
      return true
    }
    const safe = this.#held.length - this.#overlap()
    this.#pieces.push(this.#held.slice(0, safe))
    this.#held = this.#held.slice(safe)
    return false
  }

  /** The text of the next token that was pushed. */
  shift(): string {
    return this.#pieces[this.#pieceAt++] ?? ''
  }

  flush(): string {
    if (this.#stopped) return ''
    const text = this.#held + this.#decoder.decode()
    this.#held = ''
    return text
  }

  /** Length of the longest end of the held text that begins a stop string. */
  #overlap(): number {
    let longest = 0
    for (const text of this.stop) {
      for (let length = Math.min(text.length - 1, this.#held.length); length > longest; length--) {
        if (this.#held.endsWith(text.slice(0, length))) longest = length
      }
    }
    return longest
  }
}
