import { afterAll, describe, test } from 'vitest'
import { cases } from '../gpu/cases'
import { close, type Machine, machineOn } from '../gpu/machine'
import { Context } from './index'
import { probeHere } from './probe'

const found = probeHere()
const usable = found.available && found.devices.some(({ kernels }) => kernels.length > 0)
const why = found.available ? 'no device with kernels' : found.reason.split('\n')[0]

describe(usable ? 'on the device' : `needs an NVIDIA GPU: ${why}`, () => {
  let machine: Machine | undefined
  const open = (): Machine => {
    const device = found.available ? found.devices.findIndex(({ kernels }) => kernels.length > 0) : 0
    return machineOn(new Context({ device }))
  }
  afterAll(async () => {
    if (machine) await close(machine)
    machine?.context[Symbol.dispose]()
  })
  for (const [name, run] of cases) {
    test.skipIf(!usable)(name, async () => {
      machine ??= open()
      await run(machine)
    })
  }
})
