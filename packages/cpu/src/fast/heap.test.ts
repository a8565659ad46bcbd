import { afterEach, expect, it, vi } from 'vitest'
import { openCpuBackend } from './create'
import { WebAssembly } from './webassembly'

afterEach(() => {
  vi.restoreAllMocks()
})

it('a process that may not reserve the memory gets the reference, and hears why', async () => {
  vi.spyOn(WebAssembly!, 'Memory').mockImplementation(
    class {
      constructor() {
        throw new RangeError('WebAssembly.Memory(): could not allocate memory')
      }
    } as never,
  )
  const reasons: string[] = []
  const backend = await openCpuBackend({ threads: 1, onFallback: ({ message }) => reasons.push(message) })
  expect(backend.name).toBe('reference')
  expect(reasons[0]).toContain('could not allocate memory')
})
