import { cpSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { UnsupportedError } from '@flashmla/spec'
import { afterAll, expect, test } from 'vitest'
import { Context } from '../driver/context'
import { Driver } from '../driver/driver'
import { H100 } from '../testing/fake-device'
import { FakeDriver } from '../testing/fake-driver'
import { readImage } from './image'
import { KernelLibrary, readManifest } from './library'

const shipped = fileURLToPath(new URL('../../cubin', import.meta.url))
const work = mkdtempSync(join(tmpdir(), 'flashmla-kernels-'))
afterAll(() => rmSync(work, { recursive: true }))

let copies = 0
function damagedCopy(damage: (folder: string) => void): string {
  const folder = join(work, String(copies++))
  cpSync(shipped, folder, { recursive: true })
  damage(folder)
  return folder
}

function open(folder: string, computeCapability: [number, number] = [9, 0]) {
  const api = new FakeDriver([{ ...H100, computeCapability }])
  const context = new Context({ device: 0, driver: new Driver({ api }) })
  return { api, context, library: new KernelLibrary(context, folder) }
}

test('every module of the manifest is whole, with all of its kernels', () => {
  const { kernels } = readManifest(shipped)
  const modules = new Map(kernels.map(({ module, moduleSha256 }) => [module, moduleSha256]))
  expect(modules.size).toBeGreaterThanOrEqual(6)
  for (const [name, sha256] of modules) {
    const symbols = kernels.filter(({ module }) => module === name).map(({ symbol }) => symbol)
    expect(readImage(shipped, name, symbols, sha256).length).toBeGreaterThan(4096)
  }
})

test('a module is loaded once, on first use, as it lies in the package', () => {
  const { api, library } = open(shipped)
  expect(api.called('cuModuleLoadData')).toHaveLength(0)
  expect(library.kernel('mla_append')).toBe(library.kernel('mla_append'))
  library.kernel('mla_cast')
  const [[, image] = [], ...more] = api.called('cuModuleLoadData')
  expect(more).toEqual([])
  const file = readFileSync(join(shipped, 'mla_append.cubin'))
  expect(Buffer.from(image as Uint8Array).equals(Buffer.concat([file, Buffer.of(0)]))).toBe(true)
})

test.each<[string, string, (folder: string) => void, RegExp]>([
  [
    'a module that is missing',
    'mla_append',
    (folder) => rmSync(join(folder, 'mla_append.cubin')),
    /mla_append\.cubin can't be used: ENOENT.*\nInstall @flashmla\/cuda whole/,
  ],
  [
    'one that was cut short',
    'mla_append',
    (folder) => truncateSync(join(folder, 'mla_append.cubin'), 9_000),
    /it ends after 9000 of \d+ bytes/,
  ],
  [
    'a pointer file in its place',
    'mla_combine',
    (folder) => writeFileSync(join(folder, 'mla_decode_sm90.cubin'), 'version https://git-lfs.github.com/spec/v1\n'),
    /mla_decode_sm90\.cubin can't be used: its 43 bytes are no compiled kernels/,
  ],
  [
    'an empty one',
    'mla_add',
    (folder) => writeFileSync(join(folder, 'mla_model.cubin'), ''),
    /its 0 bytes are no compiled/,
  ],
  [
    'another module under its name',
    'mla_append',
    (folder) => cpSync(join(folder, 'mla_model.cubin'), join(folder, 'mla_append.cubin')),
    /the manifest's kernel mla_append is not in it/,
  ],
  [
    'one with a byte changed',
    'mla_append',
    (folder) => {
      const file = join(folder, 'mla_append.cubin')
      const bytes = readFileSync(file)
      bytes[8_000]! ^= 1
      writeFileSync(file, bytes)
    },
    /mla_append\.cubin can't be used: its bytes are not those that were built/,
  ],
])('%s is refused before the driver sees it', (_, symbol, damage, message) => {
  const { api, context, library } = open(damagedCopy(damage))
  expect(() => library.kernel(symbol)).toThrow(UnsupportedError)
  expect(() => library.kernel(symbol)).toThrow(message)
  expect(api.called('cuModuleLoadData')).toHaveLength(0)
  library[Symbol.dispose]()
  context[Symbol.dispose]()
})

test.each<[string, (file: string) => void, RegExp]>([
  ['cut', (file) => truncateSync(file, 20_000), /ends after 20000 bytes, within a kernel/],
  ['no', (file) => writeFileSync(file, 'hello'), /its 5 bytes are no PTX/],
])('%s PTX is refused too', (_, damage, message) => {
  const { library } = open(
    damagedCopy((folder) => damage(join(folder, 'mla_append.ptx'))),
    [8, 0],
  )
  expect(() => library.kernel('mla_append')).toThrow(message)
  expect(library.kernel('mla_add').symbol).toBe('mla_add')
})

test.each([
  ['{', /can't be read from .*manifest\.json/],
  ['null', /has version undefined, not 1/],
  ['{"version": 2}', /has version 2, not 1.*\nReinstall/],
  ['{"version": 1}', /Entry 0 of the kernels' manifest .* does not describe a kernel/],
  ['{"version": 1, "kernels": [{"module": "a.cubin", "target": "sm_90a", "symbol": "a", "threads": 0}]}', /Entry 0/],
])('the manifest %s is refused', (text, message) => {
  const folder = damagedCopy((copy) => writeFileSync(join(copy, 'manifest.json'), text))
  expect(() => readManifest(folder)).toThrow(UnsupportedError)
  expect(() => readManifest(folder)).toThrow(message)
  expect(() => open(folder)).toThrow(UnsupportedError)
})

test('a kernel that needs more shared memory than the device gives is refused', () => {
  const { library } = open(shipped)
  expect(() => library.kernel('mla_attend', 232_449)).toThrow(
    /mla_attend needs 232449 bytes of shared memory; device 0 gives a block 232448/,
  )
})

test('a module that the driver refuses is named', () => {
  const { api, library } = open(shipped)
  api.failures.set('cuModuleLoadData', 200)
  expect(() => library.kernel('mla_append')).toThrow(/cuModuleLoadData\(mla_append\.cubin, \d+ bytes\) failed/)
  api.failures.delete('cuModuleLoadData')
  expect(library.kernel('mla_append').symbol).toBe('mla_append')
})
