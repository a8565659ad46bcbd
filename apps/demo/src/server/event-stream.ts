import type { ServerResponse } from 'node:http'
import type { PacedStream, WritePacer } from './write-pacer'

export interface EventStreamOptions {
  /** Milliseconds that the client may take nothing while something waits for it. */
  readonly stallMs: number
  /** Says when to write. */
  readonly pacer: Pick<WritePacer, 'add' | 'delete'>
  /** Called once when the client leaves, or stalls, before the end. */
  readonly onGone: () => void
}

/**
 * A response of server-sent events. What is sent until the pacer calls goes out in one write. Nothing is thrown when the
 * client is gone.
 */
export class EventStream implements PacedStream {
  #pending = ''
  #fresh = true
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

  get fresh(): boolean {
    return this.#fresh
  }

  send(data: string): void {
    if (this.#gone || this.#ended) return
    if (this.#pending === '') this.options.pacer.add(this)
    this.#pending += `data: ${data}\n\n`
  }

  end(): void {
    if (this.#gone || this.#ended) return
    this.options.pacer.delete(this)
    this.flush()
    this.#ended = true
    this.response.end()
  }

  /** Writes what was sent so far. */
  flush(): void {
    const text = this.#pending
    if (text === '' || this.#gone) return
    this.#pending = ''
    this.#fresh = false
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
    this.options.pacer.delete(this)
    this.options.onGone()
  }
}
