import type { MlaConfig } from '@flashmla/latent'
import type { MetadataValue } from './write'

/** llama.cpp's codes of the router's scoring function. */
const gating = { softmax: 1, sigmoid: 2 } as const
const fileTypes = { f32: 0, bf16: 32 } as const

/**
 * Metadata of llama.cpp's `deepseek2` architecture. Attention is declared in its absorbed form: one key-value head of
 * kv_lora_rank + rope, with the per-head lengths under `_mla`.
 * @throws RangeError for a rotary or layer layout that the architecture can't name
 */
export function deepseek2Metadata(config: MlaConfig, dtype: 'f32' | 'bf16', name: string): Map<string, MetadataValue> {
  const { rope, moe } = config
  if (!rope.interleaved) throw new RangeError('deepseek2 rotates neighbouring pairs; this checkpoint rotates halves.')
  if (moe && moe.layerFrequency !== 1) throw new RangeError('deepseek2 has experts in every layer past the dense ones.')
  const fields = new Map<string, MetadataValue>()
  const integer = (key: string, value: number) => fields.set(`deepseek2.${key}`, { type: 'uint32', value })
  const real = (key: string, value: number) => fields.set(`deepseek2.${key}`, { type: 'float32', value })
  const { kvLoraRank, qkNopeHeadDim, qkRopeHeadDim, vHeadDim } = config
  fields.set('general.architecture', { type: 'string', value: 'deepseek2' })
  fields.set('general.name', { type: 'string', value: name })
  fields.set('general.file_type', { type: 'uint32', value: fileTypes[dtype] })
  integer('block_count', config.numLayers)
  integer('context_length', config.maxPositions)
  integer('embedding_length', config.hiddenSize)
  integer('feed_forward_length', config.intermediateSize)
  integer('vocab_size', config.vocabSize)
  integer('attention.head_count', config.numHeads)
  integer('attention.head_count_kv', 1)
  if (config.qLoraRank) integer('attention.q_lora_rank', config.qLoraRank)
  integer('attention.kv_lora_rank', kvLoraRank)
  integer('attention.key_length', kvLoraRank + qkRopeHeadDim)
  integer('attention.value_length', kvLoraRank)
  integer('attention.key_length_mla', qkNopeHeadDim + qkRopeHeadDim)
  integer('attention.value_length_mla', vHeadDim)
  real('attention.layer_norm_rms_epsilon', config.rmsNormEps)
  integer('rope.dimension_count', qkRopeHeadDim)
  real('rope.freq_base', rope.theta)
  if (rope.yarn) {
    fields.set('deepseek2.rope.scaling.type', { type: 'string', value: 'yarn' })
    real('rope.scaling.factor', rope.yarn.factor)
    integer('rope.scaling.original_context_length', rope.yarn.originalMaxPositions)
    real('rope.scaling.yarn_beta_fast', rope.yarn.betaFast)
    real('rope.scaling.yarn_beta_slow', rope.yarn.betaSlow)
    // The loader divides by 0.1 again.
    real('rope.scaling.yarn_log_multiplier', 0.1 * rope.yarn.mscaleAllDim)
  }
  integer('leading_dense_block_count', moe ? moe.firstDenseLayers : config.numLayers)
  integer('expert_feed_forward_length', moe ? moe.intermediateSize : config.intermediateSize)
  integer('expert_shared_count', moe?.numSharedExperts ?? 0)
  if (moe) {
    const { router } = moe
    integer('expert_count', moe.numExperts)
    integer('expert_used_count', router.topK)
    real('expert_weights_scale', router.scale)
    fields.set('deepseek2.expert_weights_norm', { type: 'bool', value: router.normalize })
    integer('expert_gating_func', gating[router.scoring])
    if (router.method !== 'greedy' && router.numGroups > 1) {
      integer('expert_group_count', router.numGroups)
      integer('expert_group_used_count', router.topkGroups)
    }
  }
  return fields
}
