import type { Probe } from '@flashmla/cuda'
import { UnsupportedError } from '@flashmla/spec'
import { expect, it, vi } from 'vitest'
import { checkBackends, openBackend } from './backends'

const { createCudaBackend } = vi.hoisted(() => ({ createCudaBackend: vi.fn() }))
vi.mock('@flashmla/cuda', () => ({ createCudaBackend }))

const device = {
  ordinal: 0,
  name: 'a GPU',
  computeCapability: [9, 0],
  multiprocessors: 132,
  memoryBytes: 2 ** 36,
  memoryBytesPerSecond: 3.35e12,
  sharedBytesPerBlock: 232448,
  kernels: ['mla_append'],
  why: 'Hopper',
} as const

it.each<[string, Probe, object, string]>([
  [
    'crashed',
    { available: false, reason: 'ended with SIGSEGV' },
    { usable: false, detail: 'ended with SIGSEGV' },
    'cpu',
  ],
  [
    'lists a GPU without kernels',
    { available: true, driverVersion: '13.0', devices: [{ ...device, kernels: [], why: 'too old' }] },
    { usable: false, detail: 'too old' },
    'cpu',
  ],
  [
    'lists a GPU',
    { available: true, driverVersion: '13.0', devices: [device] },
    { usable: true, detail: 'cuda (a GPU)' },
    'cuda',
  ],
])('the driver is left alone after its probe, which %s', async (_, cuda, check, chosen) => {
  const checks = await checkBackends(cuda)
  expect(checks[0]).toMatchObject({ id: 'cuda', ...check })
  expect(checks.filter((one) => one.chosen).map(({ id }) => id)).toEqual([chosen])
  expect(checks.find(({ id }) => id === 'reference')).toMatchObject({ usable: true })
})

it('what is asked of a GPU is asked of it alone', async () => {
  const backend = { name: 'cuda' }
  createCudaBackend.mockResolvedValue(backend)
  for (const [options, given] of [
    [
      { backend: 'cuda', fast: false },
      { device: 0, attention: 'exact' },
    ],
    [
      { backend: 'auto', fast: true },
      { device: 0, attention: 'fast' },
    ],
    [
      { backend: 'auto', fast: false, device: '3' },
      { device: 3, attention: 'exact' },
    ],
  ] as const) {
    expect(await openBackend(options)).toEqual({ id: 'cuda', backend })
    expect(createCudaBackend).toHaveBeenLastCalledWith(given)
  }
  createCudaBackend.mockRejectedValue(new UnsupportedError('There is no GPU.', 'Find one.'))
  await expect(openBackend({ backend: 'auto', fast: true })).rejects.toThrow('There is no GPU.')
  const other = await openBackend({ backend: 'auto', threads: '1', fast: false })
  expect(other.id).toMatch(/cpu|reference/)
  other.backend.dispose()
})
