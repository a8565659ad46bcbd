import type { Vocabulary } from '../grammar/vocabulary'
import type { LlmEngine } from './engine'
import type { FinishEvent, GenerationRequest, RequestListener, RunningRequest, TokenEvent } from './request'
import { EventQueue } from './request'

export interface TextRequest extends Omit<GenerationRequest, 'shouldStop'> {
  /** Generation of a sample ends before the first of these that it writes. */
  readonly stop?: readonly string[]
  /** Special tokens whose text is part of the answer, such as the markers of tool calls; others have none. */
  readonly shown?: ReadonlySet<string>
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
  const queue = new EventQueue<TextEvent | TextFinishEvent>(() => running.cancel())
  const running = startText(engine, vocabulary, request, queue)
  return { cancel: running.cancel, [Symbol.asyncIterator]: () => queue[Symbol.asyncIterator]() }
}

/** `streamText` for a listener, which hears each event within the step that made it. */
export function startText(
  engine: LlmEngine,
  vocabulary: Vocabulary,
  request: TextRequest,
  listener: RequestListener<TextEvent | TextFinishEvent>,
): RunningRequest {
  const { stop = [], shown, ...rest } = request
  const assemblers: TextAssembler[] = []
  const assemblerOf = (index: number) => {
    assemblers[index] ??= new TextAssembler(vocabulary, stop, shown)
    return assemblers[index]
  }
  return engine.start(
    { ...rest, shouldStop: (index) => assemblerOf(index).stopped },
    {
      event(event) {
        const assembler = assemblerOf(event.index)
        // Field by field: spreading the event would cost more than all the rest here.
        if (event.type === 'token') {
          const { type, index, token, logprob, top } = event
          const text = assembler.push(token)
          listener.event(
            logprob === undefined
              ? { type, index, token, text }
              : { type, index, token, logprob, top: top ?? [], text },
          )
        } else listener.event({ ...event, text: assembler.flush() })
      },
      end: (error) => listener.end(error),
    },
  )
}

/** Tokens to text: holds back an incomplete character, and what may be the beginning of a stop string. */
export class TextAssembler {
  #decoder: InstanceType<typeof TextDecoder> | undefined
  #held = ''
  #stopped = false

  constructor(
    private readonly vocabulary: Vocabulary,
    private readonly stop: readonly string[],
    private readonly shown?: ReadonlySet<string>,
  ) {}

  /** True once a stop string is complete. */
  get stopped(): boolean {
    return this.#stopped
  }

  /** Takes the next token; returns what became certain. */
  push(token: number): string {
    const text = this.#decode(token)
    if (this.stop.length === 0) return text
    this.#held += text
    const ends = this.stop.map((each) => this.#held.indexOf(each)).filter((at) => at >= 0)
    if (ends.length > 0) {
      this.#stopped = true
      return this.#take(Math.min(...ends))
    }
    return this.#take(this.#held.length - this.#overlap())
  }

  flush(): string {
    if (this.#stopped) return ''
    const text = this.#held + (this.#decoder?.decode() ?? '')
    this.#held = ''
    return text
  }

  /** Most tokens are whole characters, whose text is known; a decoder is kept only from a broken character on. */
  #decode(token: number): string {
    if (this.shown && this.vocabulary.isSpecial(token)) {
      const name = this.vocabulary.specialText(token)
      if (this.shown.has(name)) return (this.#decoder?.decode() ?? '') + name
    }
    const whole = this.#decoder ? undefined : this.vocabulary.wholeText(token)
    if (whole !== undefined) return whole
    this.#decoder ??= new TextDecoder('utf-8', { ignoreBOM: true })
    return this.#decoder.decode(this.vocabulary.bytes(token), { stream: true })
  }

  #take(length: number): string {
    const text = this.#held.slice(0, length)
    this.#held = this.#held.slice(length)
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
