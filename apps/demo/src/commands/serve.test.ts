import { spawn } from 'node:child_process'
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
