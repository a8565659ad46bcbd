import type { ServerResponse } from 'node:http'

export interface EventStreamOptions {
  /** Milliseconds that the client may take nothing while something waits for it. */
  readonly stallMs: number
  /** Called once when the client leaves, or stalls, before the end. */
  readonly onGone: () => void
}

/**
 * A response of server-sent events. What is sent within one turn of the engine goes out in one write, at the end of that
 * turn. Nothing is thrown when the client is gone.
 */
export class EventStream {
  #pending = ''
  #gone = false
  #ended = false

  constructor(
    private readonly response: ServerResponse,
    private readonly options: EventStreamOptions,
  ) {
    response.writeHead(200, {
      'Content-Type': 'text/event-stream',
      'Cache-Control': 'no-cache',
      'X-Accel-Buffering': 'no',
    })
    response.flushHeaders()
    response.once('close', () => {
      if (!this.#ended) this.#leave()
    })
    // Fires when nothing was read, begun to be written, or taken by the client for that long.
    response.setTimeout(options.stallMs, () => {
      const { socket } = response
      if (!socket || socket.writableLength === 0) return
      socket.destroy()
      this.#leave()
    })
  }

  /** True once the client has left or has stopped reading; what is sent then goes nowhere. */
  get gone(): boolean {
    return this.#gone
  }

  send(data: string): void {
    if (this.#gone || this.#ended) return
    if (this.#pending === '') queueMicrotask(this.#flush)
    this.#pending += `data: ${data}\n\n`
  }

  end(): void {
    if (this.#gone || this.#ended) return
    this.#flush()
    this.#ended = true
    this.response.end()
  }

  readonly #flush = (): void => {
    const text = this.#pending
    if (text === '' || this.#gone) return
    this.#pending = ''
    const { response } = this
    const { socket } = response
    if (!socket || !response.chunkedEncoding) {
      // Behind another answer of its connection, or for a client of HTTP/1.0.
      response.write(text)
      return
    }
    // The response's own write frames a chunk in four pieces; this is the same bytes in one, and one system call.
    const bytes = Buffer.byteLength(text)
    socket.write(`${bytes.toString(16)}\r\n${text}\r\n`, bytes === text.length ? 'latin1' : 'utf8')
  }

  #leave(): void {
    if (this.#gone) return
    this.#gone = true
    this.options.onGone()
  }
}
