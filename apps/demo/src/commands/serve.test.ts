import { spawn } from 'node:child_process'
import { type AddressInfo, createServer } from 'node:net'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { afterAll, expect, it } from 'vitest'

const entry = fileURLToPath(new URL('../../dist/cli.js', import.meta.url))
let child: ReturnType<typeof spawn> | undefined
afterAll(() => child?.kill('SIGKILL'))

it('serves the embedded model, prints where, and drains on SIGTERM', async () => {
  const server = spawn(process.execPath, [entry, 'serve', '--port', '0', '--log-level', 'silent'], { stdio: 'pipe' })
  child = server
  const ended = new Promise<number | null>((resolve) => server.once('exit', resolve))
  let line = ''
  for await (line of createInterface({ input: server.stdout })) break
  const url = /http:\/\/127\.0\.0\.1:\d+/.exec(line)?.[0]
  expect(url, line).toBeDefined()
  const body = JSON.stringify({ prompt: 'The whale', max_tokens: 6, temperature: 0 })
  const post = () => fetch(`${url}/v1/completions`, { method: 'POST', body }).then((response) => response.json())
  const [first, second] = [await post(), await post()]
  expect(first.choices[0].text).toBe(' is a very rich man,')
  expect(second.choices).toEqual(first.choices)
  server.kill('SIGTERM')
  expect(await ended).toBe(0)
})

it('names a model by its folder, and takes keys from the environment', async () => {
  const server = spawn(process.execPath, [entry, 'serve', '--model', '.', '--port', '0', '--log-level', 'silent'], {
    stdio: 'pipe',
    cwd: fileURLToPath(new URL('../../../../packages/tiny-mla/model', import.meta.url)),
    env: { ...process.env, FLASHMLA_API_KEYS: 'one, two' },
  })
  child = server
  let line = ''
  for await (line of createInterface({ input: server.stdout })) break
  expect(line).toMatch(/^model on http/)
  const url = /http:\/\/127\.0\.0\.1:\d+/.exec(line)?.[0]
  for (const [key, status] of Object.entries({ one: 200, two: 200, three: 401 }))
    expect((await fetch(`${url}/v1/models`, { headers: { Authorization: `Bearer ${key}` } })).status, key).toBe(status)
  server.kill('SIGKILL')
})

it('says in two lines what is wrong with a port or an option', async () => {
  const taken = createServer()
  await new Promise<void>((resolve) => taken.listen(0, '127.0.0.1', resolve))
  const { port } = taken.address() as AddressInfo
  const failing = (...args: string[]) => {
    const run = spawn(process.execPath, [entry, 'serve', ...args], { stdio: 'pipe' })
    let text = ''
    run.stderr.on('data', (piece) => {
      text += piece
    })
    return new Promise<string>((resolve) => run.once('close', (code) => resolve(`${code}: ${text}`)))
  }
  expect(await failing('--port', String(port))).toBe(
    `1: Can't listen on 127.0.0.1 port ${port}: another process does.\nGive another --port; 0 takes any free one.\n`,
  )
  expect(await failing('--log-level', 'loud')).toMatch(/^1: --log-level can't be loud\.\nGive one of .*\n$/)
  taken.close()
})
