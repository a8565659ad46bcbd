import type { Context } from 'hono'
import { streamSSE } from 'hono/streaming'
import type { ServerContext } from './context'

/** Pages that the live view shows; a larger pool is shown by its first ones. */
const maxPages = 4096

/** What the page draws, as of now. */
export function liveState({ engine, model }: ServerContext) {
  const { owner, holders, sequences, pageSize } = engine.pages()
  return {
    time: Date.now(),
    stats: engine.stats(),
    pageSize,
    owner: Array.from(owner.subarray(0, maxPages)),
    holders: Array.from(holders.subarray(0, maxPages)),
    sequences,
    model,
  }
}

export type LiveState = ReturnType<typeof liveState>

/** The state of the cache as server-sent events, as often as it changes and at most every `everyMs`. */
export function live(c: Context, context: ServerContext, everyMs = 120): Response {
  // Nobody reads the body of a HEAD: a stream for it would never end.
  if (c.req.method === 'HEAD') return c.body(null, 200, { 'Content-Type': 'text/event-stream' })
  return streamSSE(c, async (stream) => {
    let changed = true
    let wake: (() => void) | undefined
    const off = context.engine.onStep(() => {
      changed = true
    })
    const timer = setInterval(() => wake?.(), everyMs)
    stream.onAbort(() => wake?.())
    try {
      for (let idle = 0; !stream.aborted && !stream.closed && !context.draining(); idle++) {
        // Once a second even when nothing happens, so that the page's clocks go on and a dead client is noticed.
        if (changed || idle * everyMs >= 1000) {
          changed = false
          idle = 0
          await stream.writeSSE({ data: JSON.stringify(liveState(context)) })
        }
        await new Promise<void>((resolve) => {
          wake = resolve
        })
      }
    } finally {
      clearInterval(timer)
      off()
    }
  })
}
