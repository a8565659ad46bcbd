import { availableParallelism } from 'node:os'
import type { Overhead } from './overhead'
import { measureOverhead } from './overhead'
import { SimulatedModel } from './simulated-model'
import { tinyModel } from './tiny-model'

/** What a process of this file measures, once it is told. */
export interface CostRequest {
  /** Of the CPU backend; 0 takes the simulated accelerator. */
  readonly threads: number
  /** The server's own when not given. */
  readonly flushMs: number | undefined
  readonly tokens: number
  readonly rounds: number
}

export type Cost = Overhead & { readonly model: string }

process.once('message', async ({ threads, flushMs, tokens, rounds }: CostRequest) => {
  const left = threads < availableParallelism() ? 'the rest left to the server' : 'none left to the server'
  const tiny = threads > 0 ? await tinyModel(threads) : undefined
  const model = tiny?.model ?? new SimulatedModel(64, 8, 0.02, 4096)
  const name = tiny ? `${tiny.name}, ${left}` : 'simulated accelerator'
  const overhead = await measureOverhead(model, 16, tokens, rounds, flushMs === undefined ? {} : { flushMs })
  const cost: Cost = { model: flushMs === 0 ? `${name}, written after every step` : name, ...overhead }
  process.send!(cost)
  tiny?.model.dispose()
  tiny?.backend.dispose()
})
