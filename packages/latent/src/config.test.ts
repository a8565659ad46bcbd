import { InvalidConfigError } from '@flashmla/spec'
import { describe, expect, it } from 'vitest'
import { parseMlaConfig } from './config'

// biome-ignore lint/suspicious/noApproximativeNumericConstant: the published value, not √½
const v2Mscale = 0.707
const yarn = { type: 'yarn', factor: 40, original_max_position_embeddings: 4096, beta_fast: 32, beta_slow: 1 }
/** The published values of each model. */
const v2Lite = {
  vocab_size: 102400,
  hidden_size: 2048,
  num_hidden_layers: 27,
  num_attention_heads: 16,
  q_lora_rank: null,
  kv_lora_rank: 512,
  qk_nope_head_dim: 128,
  qk_rope_head_dim: 64,
  v_head_dim: 128,
  intermediate_size: 10944,
  moe_intermediate_size: 1408,
  max_position_embeddings: 163840,
  n_routed_experts: 64,
  n_shared_experts: 2,
  num_experts_per_tok: 6,
  first_k_dense_replace: 1,
  moe_layer_freq: 1,
  n_group: 1,
  topk_group: 1,
  topk_method: 'greedy',
  scoring_func: 'softmax',
  norm_topk_prob: false,
  routed_scaling_factor: 1.0,
  hidden_act: 'silu',
  attention_bias: false,
  rms_norm_eps: 1e-6,
  rope_theta: 10000,
  rope_scaling: { ...yarn, mscale: v2Mscale, mscale_all_dim: v2Mscale },
  eos_token_id: 100001,
}
const v2 = {
  ...v2Lite,
  hidden_size: 5120,
  num_hidden_layers: 60,
  num_attention_heads: 128,
  q_lora_rank: 1536,
  n_routed_experts: 160,
  n_group: 8,
  topk_group: 3,
  topk_method: 'group_limited_greedy',
  routed_scaling_factor: 16.0,
}
const v3 = {
  ...v2,
  vocab_size: 129280,
  hidden_size: 7168,
  num_hidden_layers: 61,
  n_routed_experts: 256,
  n_shared_experts: 1,
  num_experts_per_tok: 8,
  n_group: 8,
  topk_group: 4,
  topk_method: 'noaux_tc',
  scoring_func: 'sigmoid',
  norm_topk_prob: true,
  routed_scaling_factor: 2.5,
  first_k_dense_replace: 3,
  rope_scaling: { ...yarn, mscale: 1.0, mscale_all_dim: 1.0 },
}
const kimiK2 = {
  ...v3,
  vocab_size: 163840,
  num_attention_heads: 64,
  n_routed_experts: 384,
  n_group: 1,
  topk_group: 1,
  first_k_dense_replace: 1,
  routed_scaling_factor: 2.827,
  rope_theta: 50000,
  rope_scaling: { ...yarn, factor: 32, mscale: 1.0, mscale_all_dim: 1.0 },
  eos_token_id: [163586, 163585],
}

describe('published models', () => {
  it('V2-Lite: no query compression, greedy softmax router', () => {
    const config = parseMlaConfig(v2Lite)
    expect(config).toMatchObject({ qLoraRank: undefined, kvLoraRank: 512, numHeads: 16, eosTokenIds: [100001] })
    expect(config.moe).toMatchObject({ numExperts: 64, numSharedExperts: 2, firstDenseLayers: 1 })
    expect(config.moe?.router).toEqual({
      scoring: 'softmax',
      method: 'greedy',
      topK: 6,
      numGroups: 1,
      topkGroups: 1,
      normalize: false,
      scale: 1,
    })
    expect(config.rope).toEqual({
      theta: 10000,
      interleaved: true,
      yarn: {
        factor: 40,
        originalMaxPositions: 4096,
        betaFast: 32,
        betaSlow: 1,
        mscale: v2Mscale,
        mscaleAllDim: v2Mscale,
      },
    })
  })

  it('V2: groups ranked by their best', () => {
    const config = parseMlaConfig(v2)
    expect(config.qLoraRank).toBe(1536)
    expect(config.moe?.router).toMatchObject({ method: 'group_limited_greedy', numGroups: 8, topkGroups: 3, scale: 16 })
  })

  it('V3 and R1: bias-corrected sigmoid router', () => {
    const config = parseMlaConfig(v3)
    expect(config.moe?.router).toMatchObject({ method: 'noaux_tc', scoring: 'sigmoid', normalize: true, scale: 2.5 })
    expect(config.moe?.firstDenseLayers).toBe(3)
  })

  it('Kimi K2: its own theta, two end tokens', () => {
    const config = parseMlaConfig(kimiK2)
    expect(config.rope).toMatchObject({ theta: 50000, yarn: { factor: 32 } })
    expect(config.eosTokenIds).toEqual([163586, 163585])
  })

  it('rope_parameters mean what rope_scaling and rope_theta mean', () => {
    for (const json of [v2Lite, v3, kimiK2]) {
      const { rope_scaling, rope_theta, ...rest } = json
      const renamed = { ...rest, rope_parameters: { ...rope_scaling, rope_type: 'yarn', rope_theta } }
      expect(parseMlaConfig(renamed)).toEqual(parseMlaConfig(json))
      const plain = { ...rest, rope_theta, rope_scaling: null }
      const plainRenamed = { ...rest, rope_parameters: { rope_type: 'default', rope_theta } }
      expect(parseMlaConfig(plainRenamed)).toEqual(parseMlaConfig(plain))
    }
  })

  it('a look-alike without experts, and a router that names only its scores', () => {
    const { n_routed_experts, ...dense } = v3
    expect(parseMlaConfig(dense).moe).toBeUndefined()
    const { topk_method, scoring_func, ...bare } = v3
    expect(n_routed_experts && topk_method && scoring_func).toBeTruthy()
    expect(parseMlaConfig(bare).moe?.router).toMatchObject({ method: 'noaux_tc', scoring: 'sigmoid' })
    expect(parseMlaConfig({ ...bare, scoring_func: 'softmax' }).moe?.router.method).toBe('greedy')
    expect(parseMlaConfig({ ...v3, rope_interleave: false }).rope.interleaved).toBe(false)
  })
})

describe('bad values', () => {
  it.each([
    ['kv_lora_rank', undefined],
    ['kv_lora_rank', '512'],
    ['kv_lora_rank', 511.5],
    ['num_attention_heads', 0],
    ['num_hidden_layers', -1],
    ['vocab_size', Number.NaN],
    ['qk_rope_head_dim', 63],
    ['q_lora_rank', 0],
    ['rms_norm_eps', 0],
    ['rope_theta', -1],
    ['hidden_act', 'gelu'],
    ['attention_bias', true],
    ['tie_word_embeddings', 'no'],
    ['topk_method', 'random'],
    ['scoring_func', 'relu'],
    ['n_group', 7],
    ['topk_group', 9],
    ['num_experts_per_tok', 129],
    ['first_k_dense_replace', -1],
    ['moe_layer_freq', 0],
    ['norm_topk_prob', 1],
    ['eos_token_id', 'end'],
    ['eos_token_id', [1, -2]],
    ['rope_scaling', 'yarn'],
    ['rope_scaling', { type: 'linear', factor: 2 }],
    ['factor', undefined],
  ])('%s = %j is named', (field, value) => {
    const json =
      field === 'factor' ? { ...v3, rope_scaling: { ...v3.rope_scaling, factor: value } } : { ...v3, [field]: value }
    let caught: unknown
    try {
      parseMlaConfig(json)
    } catch (error) {
      caught = error
    }
    expect(caught).toBeInstanceOf(InvalidConfigError)
    expect((caught as InvalidConfigError).field).toBe(field)
    expect((caught as InvalidConfigError).message).toContain(field)
  })

  it.each([null, [], 'config', 3])('%j is no config', (json) => {
    expect(() => parseMlaConfig(json)).toThrow(InvalidConfigError)
  })
})
