import { readFileSync } from 'node:fs'
import ts from 'typescript'
import { expect, test, vi } from 'vitest'
import * as cuda from './index'
import { H100 } from './testing/fake-device'
import { FakeDriver } from './testing/fake-driver'

const readme = readFileSync(new URL('../README.md', import.meta.url), 'utf8')
const index = readFileSync(new URL('./index.ts', import.meta.url), 'utf8')
const blocks = [...readme.matchAll(/```(?:ts|js)\n([\s\S]*?)```/g)].map((match) => match[1]!)

/** Runs a block with its imports and free names given. */
async function run(block: string, names: Record<string, unknown>): Promise<void> {
  const options = { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext, verbatimModuleSyntax: true }
  const code = ts.transpileModule(block, { compilerOptions: options }).outputText.replace(/^import .*$/gm, '')
  const AsyncFunction = (async () => {}).constructor as new (...parts: string[]) => (...values: unknown[]) => unknown
  await new AsyncFunction(...Object.keys(names), code)(...Object.values(names))
}

test('every export is named', () => {
  const exported = [...index.matchAll(/^export (?:type )?\{([^}]+)\}/gm)].flatMap((match) => match[1]!.split(','))
  const names = exported.map((name) => name.trim()).filter(Boolean)
  expect(names).toEqual(expect.arrayContaining(Object.keys(cuda)))
  expect(names.filter((name) => !new RegExp(`\`${name}[\`(]`).test(readme))).toEqual([])
})

test('the ten lines run, with a driver and without', async () => {
  const log = vi.fn()
  const found = { available: false, reason: 'no driver' }
  await run(blocks[0]!, { probe: async () => found, console: { log } })
  await vi.waitFor(() => expect(log).toHaveBeenCalledWith('No CUDA here: no driver'))
  const device = { ordinal: 0, name: 'H100', why: 'Hopper', kernels: ['mla_append'] }
  const here = { available: true, driverVersion: '13.0', devices: [device] }
  await run(blocks[0]!, { probe: async () => here, console: { log } })
  await vi.waitFor(() => expect(log).toHaveBeenLastCalledWith(0, 'H100', 'Hopper', ['mla_append']))
})

test('the decode of your own runs as it stands', async () => {
  const block = blocks.find((text) => text.includes('planDecode'))!
  const api = new FakeDriver([H100])
  class Context extends cuda.Context {
    constructor({ device }: { device: number }) {
      super({ device, driver: new cuda.Driver({ api }) })
    }
  }
  const tensors: object = { numBlocks: 4, blockTableStride: 1, scale: 0.1 }
  const sizes = { q: 147456, kv: 73728, blockTable: 4, seqLens: 4, out: 131072, lse: 512 }
  const planDecode: typeof cuda.planDecode = (library, stream, shape) => {
    for (const [name, bytes] of Object.entries(sizes)) {
      Object.assign(tensors, { [name]: new cuda.DeviceMemory(stream, shape.batch * bytes) })
    }
    return cuda.planDecode(library, stream, shape)
  }
  await run(block, { ...cuda, Context, planDecode, tensors })
  expect(api.called('cuGraphLaunch')).toHaveLength(1)
  expect(api.launches.length).toBeGreaterThanOrEqual(2)
})
