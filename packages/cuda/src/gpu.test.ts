import { afterAll, describe, test } from 'vitest'
import { closeBackends } from '../gpu/backend'
import { cases } from '../gpu/cases'
import type { Machine } from '../gpu/machine'
import { Context, KernelLibrary, Stream } from './index'
import { probeHere } from './probe'

const found = probeHere()
const usable = found.available && found.devices.some(({ kernels }) => kernels.length > 0)
const why = found.available ? 'no device with kernels' : found.reason.split('\n')[0]

describe(usable ? 'on the device' : `needs an NVIDIA GPU: ${why}`, () => {
  let machine: Machine | undefined
  const open = (): Machine => {
    const device = found.available ? found.devices.findIndex(({ kernels }) => kernels.length > 0) : 0
    const context = new Context({ device })
    return { context, stream: new Stream(context), library: new KernelLibrary(context), backends: new Map() }
  }
  afterAll(async () => {
    if (machine) await closeBackends(machine)
    machine?.library[Symbol.dispose]()
    machine?.stream[Symbol.dispose]()
    machine?.context[Symbol.dispose]()
  })
  for (const [name, run] of cases) {
    test.skipIf(!usable)(name, async () => {
      machine ??= open()
      await run(machine)
    })
  }
})
