// What only a process of its own can show: the built probe, a crash in native code, the report at exit.
import { execFile } from 'node:child_process'
import { rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { build } from 'tsup'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import { probe } from './probe'
import { hostDriver } from './testing/host-program'

const run = promisify(execFile)
const source = fileURLToPath(new URL('.', import.meta.url))
/** Beside koffi, so that the scripts find it. */
const built = join(source, `../node_modules/.test-${process.pid}`)
const env = (debug: '1' | '') => ({ ...process.env, FLASHMLA_DEBUG: debug })

beforeAll(async () => {
  const packages = join(source, '../../')
  await build({
    config: false,
    silent: true,
    entry: { probe: join(source, 'probe-child.ts'), leaking: join(source, 'testing/leaking-child.ts') },
    outDir: built,
    format: ['esm'],
    outExtension: () => ({ js: '.mjs' }),
    target: 'node20',
    noExternal: [/^@flashmla\//],
    external: ['koffi'],
    esbuildOptions(options) {
      options.alias = Object.fromEntries(
        ['spec', 'latent'].map((name) => [`@flashmla/${name}`, join(packages, name, 'src/index.ts')]),
      )
    },
  })
})
afterAll(() => rmSync(built, { recursive: true, force: true }))

test('the probe of the package answers from its child process, driver or not', async () => {
  const found = await probe({ script: join(built, 'probe.mjs') })
  if (found.available) expect(found.driverVersion).toMatch(/^\d+\.\d+$/)
  else expect(found.reason).not.toMatch(/probe (ended|did not answer|could not)/)
})

const driver = hostDriver()
test.skipIf(!driver)(
  'the probe of the package finds a driver where the loader does, and what its device runs',
  async () => {
    vi.stubEnv('LD_LIBRARY_PATH', dirname(driver!))
    const found = await probe({ script: join(built, 'probe.mjs') })
    vi.unstubAllEnvs()
    expect(found).toMatchObject({
      available: true,
      driverVersion: '13.0',
      devices: [{ name: 'host', multiprocessors: 6 }],
    })
    if (found.available) expect(found.devices[0]!.kernels).toContain('mla_decode_portable_bf16')
  },
)

test.skipIf(process.platform === 'win32')(
  'a segmentation fault in native code stays in the child process',
  async () => {
    const script = join(built, 'crash.cjs')
    // strlen of an address that no process has.
    writeFileSync(script, "require('koffi').load(null).func('strlen', 'size_t', ['uint64_t'])(16n)")
    const found = await probe({ script })
    expect(found).toMatchObject({ available: false, reason: expect.stringMatching(/probe ended with SIG(SEGV|BUS)/) })
  },
)

test('in debug mode a process ends with a report of what it left, and where that was made', async () => {
  const script = join(built, 'leaking.mjs')
  const debug = await run(process.execPath, ['--enable-source-maps', script], { env: env('1') })
  expect(debug.stderr).toMatch(/^2 CUDA resources were not disposed of:\n {2}The context of device 0\n/)
  expect(debug.stderr).toMatch(/48 bytes of memory of device 0\n.*leaking/)
  expect(debug.stderr).not.toContain('A stream')
  expect((await run(process.execPath, [script], { env: env('') })).stderr).toBe('')
  const early = await run(process.execPath, [script, 'exit'], { env: env('1') })
  expect(early.stderr).toMatch(/^3 CUDA resources/)
})
