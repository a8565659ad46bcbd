import type { ToolCall, ToolFormat } from './tool-format'

/** What became certain. */
export interface ParsedPiece {
  readonly text: string
  readonly calls: readonly ToolCall[]
}

/**
 * Finds calls in a text that comes in pieces. A beginning that may be a marker is held back; a call is told when it is
 * complete; what looked like one and is none is given back as text.
 */
export class ToolCallParser {
  #held = ''
  #inside = false
  /** How far the held text of a call was looked through for its end, and whether that is within a JSON string. */
  #scanned = 0
  #quoted = false
  /** Past the first marker: the space around calls says nothing. */
  #called = false

  /** `begun` is what the prompt already holds of a call: the text goes on inside it. */
  constructor(
    private readonly format: ToolFormat,
    private readonly begun?: string,
  ) {
    if (begun === undefined) return
    this.#inside = true
    this.#held = begun
  }

  push(piece: string): ParsedPiece {
    return this.#read(piece, false)
  }

  #read(piece: string, last: boolean): ParsedPiece {
    // Without markers, only a call that was begun in the prompt can be told, at the end.
    if (this.format.open === '' && !this.#inside) return { text: piece, calls: [] }
    this.#held += piece
    let text = ''
    const calls: ToolCall[] = []
    for (;;) {
      if (this.#inside) {
        const at = this.#callEnd(last)
        if (at < 0) break
        const body = this.#held.slice(0, at)
        this.#held = this.#held.slice(at + this.format.close.length)
        this.#inside = false
        this.#scanned = 0
        this.#quoted = false
        const parsed = this.format.parse(body)
        if (parsed) calls.push(parsed)
        else text += this.#ownText(body) + this.format.close
        this.#called ||= parsed !== undefined
        continue
      }
      const { open, section } = this.format
      const markers = [open, ...(section ?? [])]
      const found = markers
        .map((marker) => ({ marker, at: this.#held.indexOf(marker) }))
        .filter(({ at }) => at >= 0)
        .sort((a, b) => a.at - b.at)[0]
      if (found) {
        text += this.#plain(this.#held.slice(0, found.at))
        this.#held = this.#held.slice(found.at + found.marker.length)
        this.#inside = found.marker === open
        continue
      }
      const safe = this.#held.length - overlap(this.#held, markers)
      text += this.#plain(this.#held.slice(0, safe))
      this.#held = this.#held.slice(safe)
      break
    }
    return { text, calls }
  }

  /** What is left at the end: a call that was not closed but is whole counts. */
  flush(): ParsedPiece {
    const { text, calls } = this.#read('', true)
    const rest = this.#held
    this.#held = ''
    if (!this.#inside) return { text: text + this.#plain(rest), calls }
    this.#inside = false
    const parsed = this.format.parse(rest)
    if (parsed) return { text, calls: [...calls, parsed] }
    return { text: text + this.#ownText(rest), calls }
  }

  /**
   * Where the call's closing marker stands; -1 while none is known. One within a JSON string belongs to the string, unless
   * no call comes of that.
   */
  #callEnd(last: boolean): number {
    const { close, parse } = this.format
    const first = close === '' ? -1 : this.#held.indexOf(close)
    if (first < 0) return -1
    const end = (at: number) => {
      const parsed = parse(this.#held.slice(0, at))
      return parsed && !parsed.name.includes(close) ? at : first
    }
    // Goes on where the last piece ended: each character is looked at once.
    for (; this.#scanned + close.length <= this.#held.length; this.#scanned++) {
      const character = this.#held[this.#scanned]
      if (!this.#quoted && this.#held.startsWith(close, this.#scanned))
        return this.#scanned === first ? first : end(this.#scanned)
      if (character === '"') this.#quoted = !this.#quoted
      else if (this.#quoted && character === '\\') this.#scanned++
      // No JSON string goes over a line's end.
      else if (this.#quoted && character === '\n') return first
    }
    return last && end(this.#held.length) === first ? first : -1
  }

  /** A body that is no call, as text. What the prompt held is not the model's. */
  #ownText(body: string): string {
    const own = this.begun !== undefined && body.startsWith(this.begun) ? body.slice(this.begun.length) : undefined
    return own ?? this.format.open + body
  }

  #plain(text: string): string {
    return this.#called && text.trim() === '' ? '' : text
  }
}

/** Length of the longest end of `text` that begins a marker. */
function overlap(text: string, markers: readonly string[]): number {
  for (let length = Math.min(text.length, Math.max(...markers.map((m) => m.length)) - 1); length > 0; length--) {
    const end = text.slice(text.length - length)
    if (markers.some((marker) => marker.length > length && marker.startsWith(end))) return length
  }
  return 0
}
