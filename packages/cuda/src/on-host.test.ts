// The package without a device, its portable kernels too: over a driver that runs them on the host (kernels/test/driver.cpp).
import { afterAll, describe, test } from 'vitest'
import { closeBackends, contract, fastAttention } from '../gpu/backend'
import { decodesOf } from '../gpu/cases'
import { checkAppend, checkCopies } from '../gpu/decode'
import { fewLogits } from '../gpu/engine'
import type { Case, Machine } from '../gpu/machine'
import { bind, openLibrary } from './driver/api'
import { Context, Driver, KernelLibrary, Stream } from './index'
import { hostLibrary } from './testing/host-program'

const library = hostLibrary('driver')

describe.skipIf(!library)(library ? 'on the host' : 'on the host: needs Linux and a C++ compiler', () => {
  let machine: Machine | undefined
  const open = (): Machine => {
    const context = new Context({ device: 0, driver: new Driver({ api: bind(openLibrary('linux', library)) }) })
    return { context, stream: new Stream(context), library: new KernelLibrary(context), backends: new Map() }
  }
  afterAll(async () => {
    if (machine) await closeBackends(machine)
    machine?.library[Symbol.dispose]()
    machine?.stream[Symbol.dispose]()
    machine?.context[Symbol.dispose]()
  })
  const cases: readonly Case[] = [
    ['copies', checkCopies],
    ['append', checkAppend],
    ...decodesOf(60_000),
    ...contract.filter(([name]) => !/^contract, bf16 weights: (attention|cache|batch)/.test(name)), // weights are nothing to those
    ...fastAttention,
    ...fewLogits,
  ]
  for (const [name, run] of cases) {
    test(name, { timeout: 60_000 }, async () => {
      machine ??= open()
      await run(machine)
    })
  }
})
