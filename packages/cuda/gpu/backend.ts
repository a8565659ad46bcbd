import { contractCases } from '@flashmla/testing'
import { type CudaBackend, type CudaBackendOptions, createCudaBackend } from '../src/index'
import type { Case, Machine } from './machine'

/** The machine's backend of these options, opened once. */
export function backendOf(
  machine: Machine,
  options: Pick<CudaBackendOptions, 'weights' | 'attention' | 'graphs'> = {},
) {
  const { context, backends } = machine
  const key = JSON.stringify(options)
  let backend: Promise<CudaBackend> | undefined = backends.get(key)
  if (!backend) {
    backend = createCudaBackend({ device: context.device.ordinal, driver: context.driver, ...options })
    backends.set(key, backend)
  }
  return backend
}

/** Frees what the cases opened. */
export async function closeBackends({ backends }: Machine): Promise<void> {
  for (const backend of backends.values()) (await backend).dispose()
  backends.clear()
}

/** The contract of @flashmla/testing, with weights in float32 and in bf16; its test values are exact in both. */
export const contract: readonly Case[] = (['f32', 'bf16'] as const).flatMap((weights) => {
  let machine: Machine | undefined
  return contractCases(() => backendOf(machine!, { weights })).map(
    ({ name, run }): Case => [
      `contract, ${weights} weights: ${name}`,
      async (on) => {
        machine = on
        await run()
        return 'kept'
      },
    ],
  )
})
