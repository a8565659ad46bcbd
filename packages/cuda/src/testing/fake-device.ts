// What the devices of the fake driver say of themselves.
export interface FakeDevice {
  name: string
  computeCapability: [number, number]
  multiprocessors: number
  memoryBytes: number
  memoryClockKHz: number
  memoryBusBits: number
}

export const H100: FakeDevice = {
  name: 'NVIDIA H100 80GB HBM3',
  computeCapability: [9, 0],
  multiprocessors: 132,
  memoryBytes: 79 * 2 ** 30,
  memoryClockKHz: 2_619_000,
  memoryBusBits: 5120,
}

/** The value of a CUdevice_attribute, of those that are asked for. */
export function attributeOf(device: FakeDevice, id: number): number {
  const known: Record<number, number> = {
    16: device.multiprocessors,
    36: device.memoryClockKHz,
    37: device.memoryBusBits,
    75: device.computeCapability[0],
    76: device.computeCapability[1],
    97: 232448,
  }
  return known[id]!
}
