// The package without a device, its portable kernels too: over a driver that runs them on the host (kernels/test/driver.cpp).
import { afterAll, describe, expect, test } from 'vitest'
import { contract, fastAttention, notFinite } from '../gpu/backend'
import { decodesOf } from '../gpu/cases'
import { checkAppend, checkCopies } from '../gpu/decode'
import { fewLogits } from '../gpu/engine'
import { type Case, close, type Machine, machineOn } from '../gpu/machine'
import { bind, openLibrary } from './driver/api'
import { Context, Driver } from './index'
import { hostDriver } from './testing/host-program'

const library = hostDriver()

describe.skipIf(!library)(library ? 'on the host' : 'on the host: needs Linux and GCC', () => {
  let machine: Machine | undefined
  const open = () => {
    return machineOn(new Context({ device: 0, driver: new Driver({ api: bind(openLibrary('linux', library)) }) }))
  }
  afterAll(async () => {
    if (!machine) return
    await close(machine)
    machine.context[Symbol.dispose]()
    expect(machine.context.driver.live.size).toBe(0)
  })
  const cases: readonly Case[] = [
    ['copies', checkCopies],
    ['append', checkAppend],
    ...decodesOf(60_000),
    ...contract('f32'),
    ...contract('bf16', /^(?!attention|cache|batch|sample)/), // weights are nothing to those
    ...fastAttention,
    notFinite,
    ...fewLogits,
  ]
  for (const [name, run] of cases) {
    test(name, { timeout: 60_000 }, async () => {
      machine ??= open()
      await run(machine)
    })
  }
})
