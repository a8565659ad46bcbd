import type { FlashMlaError } from '@flashmla/spec'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { createCpuBackend, openCpuBackend } from './create'
import { selectModule } from './detect'
import { WebAssembly } from './webassembly'

describe('which module runs', () => {
  it('is the relaxed one on every supported Node', () => {
    expect(selectModule().level).toBe('relaxed')
    expect(selectModule('simd').level).toBe('simd')
  })

  it("leaves V8's flags as they were", () => {
    const before = WebAssembly!.validate(relaxedProbe)
    selectModule('relaxed')
    expect(WebAssembly!.validate(relaxedProbe)).toBe(before)
  })

  it('both give the same numbers up to the rounding of a multiply-add', async () => {
    const results: Float32Array[] = []
    for (const simd of ['relaxed', 'simd'] as const) {
      const backend = await createCpuBackend({ threads: 2, simd })
      expect(backend.name).toContain(simd === 'relaxed' ? 'relaxed SIMD' : 'WebAssembly SIMD')
      const weight = await backend.weight({
        name: 'w',
        dtype: 'f32',
        shape: [16, 64],
        read: async (bytes) => {
          new Float32Array(bytes.buffer, bytes.byteOffset, 1024).set(
            Float32Array.from({ length: 1024 }, (_, i) => Math.sin(i)),
          )
        },
      })
      const x = backend.tensor('f32', [5, 64])
      const out = backend.tensor('f32', [5, 16])
      backend.write(
        x,
        Float32Array.from({ length: 320 }, (_, i) => Math.cos(i)),
      )
      backend.linear(out, x, weight)
      results.push(await backend.read(out))
      await backend[Symbol.asyncDispose]()
    }
    results[0]!.forEach((value, i) => {
      expect(Math.abs(value - results[1]![i]!)).toBeLessThan(1e-4)
    })
  })
})

describe('a runtime that lacks what the kernels need', () => {
  afterEach(() => {
    vi.unstubAllGlobals()
  })

  it('gets the reference, and hears why', async () => {
    vi.stubGlobal('SharedArrayBuffer', undefined)
    const heard: FlashMlaError[] = []
    const backend = await openCpuBackend({ onFallback: (error) => heard.push(error) })
    expect(backend.name).toBe('reference')
    expect(heard.map(({ code }) => code)).toEqual(['unsupported'])
    expect(heard[0]!.message).toContain('no shared memory')
    await expect(createCpuBackend()).rejects.toThrow(expect.objectContaining({ code: 'unsupported' }))
  })

  it('what is wrong for another reason does not fall back', async () => {
    await expect(openCpuBackend({ threads: 0 })).rejects.toThrow(expect.objectContaining({ code: 'invalid_argument' }))
  })
})

/** (module (func (param v128 v128 v128) (result v128) local.get 0 local.get 1 local.get 2 f32x4.relaxed_madd)) */
const relaxedProbe = Uint8Array.of(
  ...[0, 97, 115, 109, 1, 0, 0, 0],
  ...[1, 8, 1, 96, 3, 123, 123, 123, 1, 123],
  ...[3, 2, 1, 0],
  ...[10, 13, 1, 11, 0, 32, 0, 32, 1, 32, 2, 253, 133, 2, 11],
)
