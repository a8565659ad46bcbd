import { connect } from 'node:net'

/** A round that the parent asks for: so many streams of so many tokens from the server at this port. */
export interface Round {
  readonly port: number
  readonly streams: number
  readonly tokens: number
  /** Milliseconds in which nothing is read: what a client takes of a shared machine is not the server's cost. */
  readonly quietMs: number
}

export interface RoundResult {
  /** Server-sent events read. */
  readonly events: number
  /** Processor time of this process. */
  readonly cpuMilliseconds: number
}

/** The bytes of a stream's end and of an event, looked for without decoding anything. */
const end = Buffer.from('data: [DONE]')
const event = Buffer.from('data: ')

function one({ port, tokens }: Round, i: number): Promise<number> {
  const body = JSON.stringify({
    prompt: [5 + i, 9, 33],
    max_tokens: tokens,
    stream: true,
    temperature: 0,
    ignore_eos: true,
  })
  const head = [
    'POST /v1/completions HTTP/1.1',
    'Host: 127.0.0.1',
    'Content-Type: application/json',
    `Content-Length: ${Buffer.byteLength(body)}`,
    'Connection: close',
  ]
  return new Promise((resolve, reject) => {
    let events = 0
    let ended = false
    const socket = connect(port, '127.0.0.1', () => socket.write(`${head.join('\r\n')}\r\n\r\n${body}`))
    socket.setNoDelay(true)
    socket.on('data', (piece) => {
      for (let at = piece.indexOf(event); at >= 0; at = piece.indexOf(event, at + 6)) events++
      ended ||= piece.includes(end)
    })
    socket.on('error', reject)
    socket.on('close', () => {
      if (ended && events >= tokens) resolve(events)
      else reject(new Error(`The stream broke off after ${events} events.`))
    })
  })
}

/** Time to connect and to send the requests. */
const SENDING = 60
const clock = new Int32Array(new SharedArrayBuffer(4))

process.on('message', async (round: Round) => {
  setTimeout(() => Atomics.wait(clock, 0, 0, round.quietMs), SENDING)
  const cpu = process.cpuUsage()
  try {
    const events = await Promise.all(Array.from({ length: round.streams }, (_, i) => one(round, i)))
    const { user, system } = process.cpuUsage(cpu)
    const result: RoundResult = {
      events: events.reduce((a, b) => a + b, 0),
      cpuMilliseconds: (user + system) / 1000,
    }
    process.send!(result)
  } catch (error) {
    process.stderr.write(`${error}\n`)
    process.exit(1)
  }
})
