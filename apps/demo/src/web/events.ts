/** The data of server-sent events as they arrive. */
export async function* serverEvents(response: Response): AsyncGenerator<string> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader()
  let held = ''
  try {
    for (;;) {
      const { value, done } = await reader.read()
      if (done) return
      const events = (held + value).split('\n\n')
      held = events.pop()!
      for (const event of events) {
        const data = event
          .split('\n')
          .filter((line) => line.startsWith('data: '))
          .map((line) => line.slice(6))
        if (data.length > 0) yield data.join('\n')
      }
    }
  } finally {
    reader.cancel().catch(() => {})
  }
}
