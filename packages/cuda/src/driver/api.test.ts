// The binding over a driver that a C compiler built: what arrives there is what cuda.h declares.
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, describe, expect, test } from 'vitest'
import { bind, openLibrary } from './api'
import { Context } from './context'
import { upload } from './copy'
import { Driver } from './driver'
import { Launch } from './launch'
import { DeviceMemory, PinnedMemory } from './memory'
import { Module } from './module'
import { Stream } from './stream'

const folder = mkdtempSync(join(tmpdir(), 'flashmla-stub-'))
const library = join(folder, 'libstub.so')
const source = fileURLToPath(new URL('../testing/stub-driver.c', import.meta.url))
const built = process.platform === 'linux' && compiles()
afterAll(() => rmSync(folder, { recursive: true }))

function compiles(): boolean {
  try {
    execFileSync('cc', ['-shared', '-fPIC', '-o', library, source], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}

describe.skipIf(!built)(built ? 'a compiled driver' : 'a compiled driver: needs Linux and a C compiler', () => {
  const seen = () => {
    const koffi = createRequire(import.meta.url)('koffi') as typeof import('koffi')
    return (koffi.load(library).func('stub_seen', 'str', [])() as string).trim().split('\n')
  }

  test('gets handles, sizes, text, bytes and a launch as they were meant, and its answers come back', () => {
    const driver = new Driver({ api: bind(openLibrary('linux', library)) })
    {
      using context = new Context({ device: 0, driver })
      expect([driver.version, context.device]).toEqual([
        13000,
        {
          ordinal: 0,
          name: 'stub 40',
          computeCapability: [75, 76],
          multiprocessors: 16,
          memoryBytes: 80_000_000_040,
          memoryBytesPerSecond: (2 * 36_000 * 37) / 8,
          sharedBytesPerBlock: 97,
        },
      ])
      using stream = new Stream(context)
      using memory = new DeviceMemory(stream, 2 ** 33)
      expect(memory.address).toBe(0x7f0000000000n)
      expect(() => new DeviceMemory(stream, 2 ** 41)).toThrow(
        'cuMemAllocAsync(8 bytes, 2199023255552, 0xfedcba9876543210) failed with CUDA_ERROR_OUT_OF_MEMORY (2)',
      )
      upload(stream, memory, new TextEncoder().encode('bytes'), 2 ** 32)
      using pinned = new PinnedMemory(context, 16)
      pinned.write(new TextEncoder().encode('pinned'))
      using module = new Module(context, 'stub', new TextEncoder().encode('cubin'))
      const parameters = [new TextEncoder().encode('parameter\0'), new Uint8Array(Int32Array.of(-7).buffer)]
      const kernel = module.kernel('symbol', 1024)
      new Launch({ kernel, grid: [6, 2, 3], threads: 96, cluster: 2, programmatic: true, parameters }).on(stream)
    }
    expect(seen()).toEqual([
      'current ffff800000000028',
      'pool 40 4 ffffffffffffffff',
      'allocate 8589934592 on fedcba9876543210',
      'allocate 2199023255552 on fedcba9876543210',
      'upload bytes to 7f0100000000',
      'image cubin',
      'function symbol',
      'launch 2: 6 2 3, 96 1 1, 1024, stream fedcba9876543210, 2: cluster 2 1 1 programmatic 1, parameter -7',
      'host pinned',
      'free 7f0000000000',
      'current 0',
    ])
  })

  test('a function that it lacks is named when it is called', () => {
    const driver = new Driver({ api: bind(openLibrary('linux', library)) })
    using context = new Context({ device: 0, driver })
    expect(() => context.memory()).toThrow(/libstub\.so has no cuMemGetInfo_v2.*\nUpdate the NVIDIA driver/)
  })
})
