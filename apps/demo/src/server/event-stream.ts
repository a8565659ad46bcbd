/** The writing end of a response of server-sent events. */
export interface EventWriter {
  /** True once the client has left or has stopped reading; what is sent then goes nowhere. */
  readonly gone: boolean
  /** Writes one event. Resolves at once while the client keeps up, else when it has read on. */
  send(data: string): Promise<void> | undefined
}

/** Bytes that may wait for the client before `send` waits too. */
const HIGH_WATER = 64 * 1024

/**
 * A stream of server-sent events that `write` fills. `onGone` is called once when the client leaves, or reads nothing for
 * `stallMs` while something waits for it.
 */
export function eventStream(
  stallMs: number,
  onGone: () => void,
  write: (writer: EventWriter) => Promise<void>,
): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder()
  let gone = false
  let wake: (() => void) | undefined
  const leave = () => {
    if (gone) return
    gone = true
    onGone()
    wake?.()
  }
  return new ReadableStream<Uint8Array>(
    {
      start(controller) {
        const readOn = () =>
          new Promise<void>((resolve) => {
            const timer = setTimeout(leave, stallMs)
            wake = () => {
              clearTimeout(timer)
              wake = undefined
              resolve()
            }
          })
        const writer: EventWriter = {
          get gone() {
            return gone
          },
          send(data) {
            if (gone) return undefined
            controller.enqueue(encoder.encode(`data: ${data}\n\n`))
            return (controller.desiredSize ?? 0) > 0 ? undefined : readOn()
          },
        }
        void write(writer).finally(() => {
          if (!gone) controller.close()
          else {
            // A stalled client's connection is given up; a cancelled stream is closed already.
            try {
              controller.error(new Error('The client stopped reading.'))
            } catch {}
          }
        })
      },
      pull: () => wake?.(),
      cancel: leave,
    },
    { highWaterMark: HIGH_WATER, size: (chunk) => chunk.byteLength },
  )
}
