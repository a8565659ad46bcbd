import { createServer, type Server, type ServerResponse } from 'node:http'
import { type AddressInfo, connect } from 'node:net'
import { afterEach, describe, expect, it } from 'vitest'
import { EventStream } from './event-stream'
import type { PacedStream } from './write-pacer'

let server: Server
afterEach(() => {
  server.closeAllConnections()
  server.close()
})

/** The address of a server whose every answer `write` makes. */
async function serving(write: (response: ServerResponse) => void): Promise<{ url: string; port: number }> {
  server = createServer((_, response) => write(response))
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  return { url: `http://127.0.0.1:${port}`, port }
}

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms))
/** Writes at the end of the turn. */
const pacer = { add: (stream: PacedStream) => queueMicrotask(() => stream.flush()), delete() {} }
const quiet = { stallMs: 1000, pacer, onGone: () => {} }

describe('EventStream', () => {
  it('writes events of any characters and ends; the connection is used again', async () => {
    const { url } = await serving((response) => {
      const stream = new EventStream(response, quiet)
      stream.send('{"a":1}')
      stream.send('{"é":"海 🐋"}')
      setTimeout(() => {
        stream.send('[DONE]')
        stream.end()
        stream.send('never')
      }, 5)
    })
    for (let turn = 0; turn < 2; turn++)
      expect(await (await fetch(url)).text()).toBe('data: {"a":1}\n\ndata: {"é":"海 🐋"}\n\ndata: [DONE]\n\n')
  })

  it('puts the events of a turn into one chunk', async () => {
    const { port } = await serving((response) => {
      const stream = new EventStream(response, quiet)
      stream.send('1')
      stream.send('2')
      setTimeout(() => stream.end(), 5)
    })
    const socket = connect(port, '127.0.0.1').setEncoding('latin1')
    socket.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n')
    let text = ''
    socket.on('data', (piece) => {
      text += piece
    })
    await pause(50)
    socket.destroy()
    expect(text.slice(text.indexOf('\r\n\r\n') + 4)).toBe('12\r\ndata: 1\n\ndata: 2\n\n\r\n0\r\n\r\n')
  })

  it('closes the connection of a client that asks for that', async () => {
    const { port } = await serving((response) => new EventStream(response, quiet).end())
    const socket = connect(port, '127.0.0.1').resume()
    const closed = new Promise((resolve) => socket.once('close', resolve))
    socket.write('GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n')
    const started = performance.now()
    await closed
    expect(performance.now() - started).toBeLessThan(1000)
  })

  it('answers clients of HTTP/1.0 and requests sent before the last answer ended', async () => {
    const { port } = await serving((response) => {
      const stream = new EventStream(response, quiet)
      stream.send(response.req.url!)
      setTimeout(() => {
        stream.send('end')
        stream.end()
      }, 10)
    })
    const exchange = async (text: string) => {
      const socket = connect(port, '127.0.0.1').setEncoding('latin1')
      socket.write(text)
      let answer = ''
      socket.on('data', (piece) => {
        answer += piece
      })
      await pause(80)
      socket.destroy()
      return answer
    }
    expect(await exchange('GET /old HTTP/1.0\r\n\r\n')).toMatch(/\r\n\r\ndata: \/old\n\ndata: end\n\n$/)
    const one = (path: string) => `GET ${path} HTTP/1.1\r\nHost: x\r\n\r\n`
    const answers = (await exchange(one('/first') + one('/second'))).match(/data: .*/g)
    expect(answers).toEqual(['data: /first', 'data: end', 'data: /second', 'data: end'])
  })

  it('tells when the client leaves, once, and sends nothing more', async () => {
    let left = 0
    let stream: EventStream | undefined
    const { url } = await serving((response) => {
      stream = new EventStream(response, { stallMs: 1000, pacer, onGone: () => left++ })
      stream.send('tick')
    })
    const controller = new AbortController()
    const reader = (await fetch(url, { signal: controller.signal })).body!.getReader()
    await reader.read()
    expect(left).toBe(0)
    controller.abort()
    await reader.read().catch(() => {})
    await pause(30)
    expect([left, stream!.gone]).toEqual([1, true])
    stream!.send('lost')
    stream!.end()
    expect(left).toBe(1)
  })

  it('gives up on a client that reads nothing, and keeps one that is slow', async () => {
    let left = 0
    const { port } = await serving((response) => {
      const stream = new EventStream(response, { stallMs: 100, pacer, onGone: () => left++ })
      for (let i = 0; i < 20; i++) stream.send('x'.repeat(1_000_000))
      setTimeout(() => stream.end(), 20)
    })
    const open = () => {
      const socket = connect(port, '127.0.0.1')
      socket.on('error', () => {})
      socket.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n')
      return socket
    }
    const stuck = open()
    await pause(1)
    stuck.pause()
    await pause(400)
    expect(left).toBe(1)
    stuck.destroy()
    const slow = open()
    let bytes = 0
    slow.on('data', (piece) => {
      bytes += piece.length
      slow.pause()
      setTimeout(() => slow.resume(), 1)
    })
    for (let i = 0; i < 200 && bytes < 20_000_000; i++) await pause(20)
    slow.destroy()
    expect(bytes).toBeGreaterThan(20_000_000)
    expect(left).toBe(1)
  })
})
