import { connect } from 'node:net'

/** A round that the parent asks for: so many streams of so many tokens from the server at this port. */
export interface Round {
  readonly port: number
  readonly streams: number
  readonly tokens: number
}

export interface RoundResult {
  /** Server-sent events read. */
  readonly events: number
  /** Processor time of this process. */
  readonly cpuMilliseconds: number
}

/**
 * Milliseconds between reads. Over a network the client's processor time is another machine's; here it reads what has
 * come four times a second, so that its system calls and wake-ups take next to nothing from the server.
 */
const READ_EVERY = 250

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

const clock = new Int32Array(new SharedArrayBuffer(4))
/** Sleeps, reads what has come meanwhile, and again, until told to stop. */
function readInIntervals(): () => void {
  let stopped = false
  const turn = () => {
    Atomics.wait(clock, 0, 0, READ_EVERY)
    if (!stopped) setTimeout(turn, 1)
  }
  setTimeout(turn, READ_EVERY)
  return () => {
    stopped = true
  }
}

process.on('message', async (round: Round) => {
  const stop = readInIntervals()
  const cpu = process.cpuUsage()
  try {
    const events = await Promise.all(Array.from({ length: round.streams }, (_, i) => one(round, i)))
    const { user, system } = process.cpuUsage(cpu)
    const result: RoundResult = {
      events: events.reduce((a, b) => a + b, 0),
      cpuMilliseconds: (user + system) / 1000,
    }
    stop()
    process.send!(result)
  } catch (error) {
    process.stderr.write(`${error}\n`)
    process.exit(1)
  }
})
