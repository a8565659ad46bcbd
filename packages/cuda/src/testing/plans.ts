// Schedules of decode shapes on a device that isn't there, for tests.
import { scheduleDecode } from '../decode/schedule'
import { type DecodeShape, decodeSymbol } from '../decode/shape'
import type { DeviceInfo } from '../driver/context'
import { type KernelEntry, readManifest } from '../kernels/library'

const { kernels } = readManifest()

export const H100: DeviceInfo = {
  ordinal: 0,
  name: 'H100',
  computeCapability: [9, 0],
  multiprocessors: 132,
  memoryBytes: 2 ** 36,
  memoryBytesPerSecond: 3.35232e12,
  sharedBytesPerBlock: 232448,
}

export const base: DecodeShape = { dtype: 'bf16', batch: 128, sQ: 1, hQ: 128, pageSize: 64 }

/** The schedule of `base` with something else in it. */
export function plan(overrides: Partial<DecodeShape> = {}, target: KernelEntry['target'] = 'sm_90a', device = H100) {
  const shape = { ...base, ...overrides }
  const symbol = decodeSymbol(shape, target, device.multiprocessors)
  const entry = kernels.find((kernel) => kernel.symbol === symbol && kernel.target === target)!
  return scheduleDecode(shape, entry, device)
}
