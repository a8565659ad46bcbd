import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { probe, probeHere } from './probe'
import { H100 } from './testing/fake-device'
import { FakeDriver } from './testing/fake-driver'

const folder = mkdtempSync(join(tmpdir(), 'flashmla-probe-'))
afterAll(() => rmSync(folder, { recursive: true }))

function child(name: string, body: string): string {
  const script = join(folder, `${name}.cjs`)
  writeFileSync(script, body)
  return script
}

test('devices are listed with the kernels that fit them, and why', () => {
  const old = { ...H100, name: 'Tesla T4', computeCapability: [7, 5] as [number, number] }
  const found = probeHere({ api: new FakeDriver([H100, old]) })
  if (!found.available) throw new TypeError(found.reason)
  expect(found.driverVersion).toBe('12.4')
  expect(found.devices[0]).toMatchObject({ ordinal: 0, name: H100.name, multiprocessors: 132 })
  expect(found.devices[0]!.kernels).toContain('mla_decode_bf16')
  expect(found.devices[0]!.why).toContain('Hopper')
  expect(found.devices[1]!.kernels).toEqual([])
  expect(found.devices[1]!.why).toContain('7.5 has no kernels')
})

test('a device is tried out: what refuses a context or the code has no kernels, and says why', () => {
  const api = new FakeDriver([H100])
  for (const [call, status] of [
    ['cuDevicePrimaryCtxRetain', 2],
    ['cuModuleLoadData', 222],
  ] as const) {
    api.failures.clear()
    api.failures.set(call, status)
    const found = probeHere({ api })
    if (!found.available) throw new TypeError(found.reason)
    expect(found.devices[0]).toMatchObject({ name: H100.name, memoryBytes: H100.memoryBytes, kernels: [] })
    expect(found.devices[0]!.why).toContain(`${call}(`)
  }
  api.failures.clear()
  expect(probeHere({ api })).toMatchObject({ available: true, devices: [{ computeCapability: [9, 0] }] })
  expect([api.handles.size, api.memory.size, api.retained.get(0)]).toEqual([0, 0, 0])
})

test('no device is an answer, not an error', () => {
  const found = probeHere({ api: new FakeDriver([]) })
  expect(found).toMatchObject({ available: false, reason: expect.stringContaining('found no device') })
})

test('a crash, a hang and a script that is missing stay in the child process', async () => {
  const crash = await probe({ script: child('crash', 'process.kill(process.pid, "SIGSEGV")') })
  expect(crash).toMatchObject({ available: false, reason: expect.stringContaining('SIGSEGV') })
  const hang = await probe({ script: child('hang', 'setInterval(() => {}, 1000)'), timeoutMs: 300 })
  expect(hang).toMatchObject({ available: false, reason: expect.stringContaining('within 300 ms') })
  const missing = await probe({ script: join(folder, 'none.cjs') })
  expect(missing).toMatchObject({ available: false, reason: expect.stringContaining('code 1') })
  const answer = { available: true, driverVersion: '12.4', devices: [] }
  const script = child('answer', `process.send(${JSON.stringify(answer)}); process.disconnect()`)
  expect(await probe({ script })).toEqual(answer)
  expect(await probe({ script, timeoutMs: Number.POSITIVE_INFINITY })).toEqual(answer)
})
