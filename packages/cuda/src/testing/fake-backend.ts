// A backend over a driver without a device, for tests: launches are recorded, kernels don't run.

import type { BatchStep } from '@flashmla/spec'
import { type CudaBackendOptions, createCudaBackend } from '../backend/create'
import { Driver } from '../driver/driver'
import * as structs from '../kernels/model-params'
import { MlaDecodeParams } from '../kernels/params'
import type { Struct } from '../kernels/struct'
import { H100 } from './fake-device'
import { FakeDriver, type FakeLaunch } from './fake-driver'

export const capacity = { maxSequences: 4, maxTokens: 8, maxBlocks: 5 }

/** Three query rows of two sequences, in pages of four tokens. */
export const step: BatchStep = {
  queryStart: Int32Array.of(0, 1, 3),
  seqLens: Int32Array.of(7, 2),
  blockTable: Int32Array.of(3, 1, 0, -9),
  blockTableStride: 2,
}

const STRUCTS: readonly [RegExp, Struct<Record<string, never>>][] = (
  [
    [/^mla_take_rows$/, structs.MlaTakeRowsParams],
    [/^mla_rms_norm$/, structs.MlaNormParams],
    [/^mla_copy_columns$/, structs.MlaColumnsParams],
    [/^mla_rotary$/, structs.MlaRotaryParams],
    [/^mla_(add|silu_mul)$/, structs.MlaElementsParams],
    [/^mla_convert$/, structs.MlaConvertParams],
    [/^mla_argmax$/, structs.MlaArgmaxParams],
    [/^mla_sample$/, structs.MlaSampleParams],
    [/^mla_route$/, structs.MlaRouteParams],
    [/^mla_linear_row(s_mma)?$/, structs.MlaLinearRowsParams],
    [/^mla_(linear|gated)/, structs.MlaLinearParams],
    [/^mla_expert/, structs.MlaExpertParams],
    [/^mla_append_rows$/, structs.MlaAppendRowsParams],
    [/^mla_append_latents$/, structs.MlaAppendLatentsParams],
    [/^mla_attend(_merge)?$/, structs.MlaAttendParams],
    [/^mla_(gather_latents|attend_naive)$/, structs.MlaNaiveParams],
    [/^mla_decode/, MlaDecodeParams],
  ] as const
).map(([pattern, struct]) => [pattern, struct as unknown as Struct<Record<string, never>>])

function structOf(symbol: string): Struct<Record<string, never>> | undefined {
  return STRUCTS.find(([pattern]) => pattern.test(symbol))?.[1]
}

export async function fakeBackend(options: CudaBackendOptions = {}, device = H100) {
  const api = new FakeDriver([device])
  api.parameterBytes = (symbol) => {
    const struct = structOf(symbol)
    return struct ? [struct.bytes] : []
  }
  const driver = new Driver({ api })
  const backend = await createCudaBackend({ driver, ...options })
  /** Symbols of what `work` launches. */
  const launched = (work: () => void) => {
    const before = api.launches.length
    work()
    return api.launches.slice(before)
  }
  return { api, driver, backend, launched }
}

/** A field of a launch's parameter struct. */
export function field(launch: FakeLaunch, name: string): number | bigint {
  const struct = structOf(launch.symbol)!
  const view = new DataView(launch.parameters[0]!.slice().buffer)
  const offset = (struct.offsets as ReadonlyMap<string, number>).get(name)!
  const type = (struct.fields as Record<string, string>)[name]
  if (type === 'ptr') return view.getBigUint64(offset, true)
  if (type === 'i64') return Number(view.getBigInt64(offset, true))
  return type === 'i32' ? view.getInt32(offset, true) : view.getFloat32(offset, true)
}

/** A float32 weight source of small numbers. */
export function source(shape: readonly number[], dtype: 'f32' | 'bf16' | 'f16' = 'f32') {
  return { name: 'test', dtype, shape, read: async (target: Uint8Array) => void target.fill(1) }
}
