import { describe, expect, it } from 'vitest'
import { eventStream } from './event-stream'

describe('eventStream', () => {
  it('writes events and ends', async () => {
    const stream = eventStream(
      1000,
      () => {},
      async (writer) => {
        await writer.send('{"a":1}')
        await writer.send('[DONE]')
      },
    )
    expect(await new Response(stream).text()).toBe('data: {"a":1}\n\ndata: [DONE]\n\n')
  })

  it('waits for a client that lags, and goes on when it reads', async () => {
    let sent = 0
    const stream = eventStream(
      5000,
      () => {},
      async (writer) => {
        for (; sent < 300; sent++) await writer.send('x'.repeat(1000))
      },
    )
    await new Promise((resolve) => setTimeout(resolve, 20))
    expect(sent).toBeLessThan(100)
    expect((await new Response(stream).text()).length).toBe(300 * 1008)
    expect(sent).toBe(300)
  })

  it('tells when the client leaves, once, and sends nothing more', async () => {
    let left = 0
    let after: boolean | undefined
    const stream = eventStream(
      1000,
      () => left++,
      async (writer) => {
        while (!writer.gone) {
          await writer.send('tick')
          await new Promise((resolve) => setTimeout(resolve, 1))
        }
        await writer.send('lost')
        after = writer.gone
      },
    )
    const reader = stream.getReader()
    await reader.read()
    await reader.cancel()
    await new Promise((resolve) => setTimeout(resolve, 20))
    expect([left, after]).toEqual([1, true])
  })

  it('gives up on a client that reads nothing', async () => {
    let left = 0
    const stream = eventStream(
      30,
      () => left++,
      async (writer) => {
        while (!writer.gone) await writer.send('x'.repeat(10_000))
      },
    )
    await new Promise((resolve) => setTimeout(resolve, 100))
    expect(left).toBe(1)
    await expect(new Response(stream).text()).rejects.toThrow()
  })
})
