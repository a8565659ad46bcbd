import type { Probe } from '@flashmla/cuda'
import { expect, it } from 'vitest'
import { checkBackends } from './backends'

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
