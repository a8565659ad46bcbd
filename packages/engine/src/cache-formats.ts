import type { MlaConfig } from '@flashmla/latent'
import { bf16Format, f32Format, fp8V32Format } from '@flashmla/latent'
import type { CacheFormat } from '@flashmla/spec'
import { UnsupportedError } from '@flashmla/spec'

export type CacheFormatName = 'f32' | 'bf16' | 'fp8-656'

const named: Record<CacheFormatName, (config: MlaConfig) => CacheFormat> = {
  f32: (config) => f32Format(config.kvLoraRank, config.qkRopeHeadDim),
  bf16: (config) => bf16Format(config.kvLoraRank, config.qkRopeHeadDim),
  'fp8-656': () => fp8V32Format,
}

/** The format for a model. @throws UnsupportedError when its widths are not the model's */
export function cacheFormat(choice: CacheFormatName | CacheFormat, config: MlaConfig): CacheFormat {
  const format = typeof choice === 'string' ? named[choice]?.(config) : choice
  if (!format) {
    throw new UnsupportedError(`There is no cache format ${choice}.`, `Choose ${Object.keys(named).join(', ')}.`)
  }
  if (format.kvLoraRank !== config.kvLoraRank || format.ropeDim !== config.qkRopeHeadDim) {
    throw new UnsupportedError(
      `The format ${format.name} holds ${format.kvLoraRank} + ${format.ropeDim} values, the model caches ${config.kvLoraRank} + ${config.qkRopeHeadDim}.`,
      'Choose f32 or bf16, which fit every model.',
    )
  }
  return format
}
