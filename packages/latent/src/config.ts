import type { RouterOptions } from '@flashmla/spec'
import { InvalidConfigError } from '@flashmla/spec'

export interface RopeConfig {
  readonly theta: number
  readonly interleaved: boolean
  readonly yarn?: {
    readonly factor: number
    readonly originalMaxPositions: number
    readonly betaFast: number
    readonly betaSlow: number
    readonly mscale: number
    readonly mscaleAllDim: number
  }
}

/** The dimensions of an MLA model, in the field's terms. */
export interface MlaConfig {
  readonly vocabSize: number
  readonly hiddenSize: number
  readonly numLayers: number
  readonly numHeads: number
  readonly qLoraRank: number | undefined
  readonly kvLoraRank: number
  readonly qkNopeHeadDim: number
  readonly qkRopeHeadDim: number
  readonly vHeadDim: number
  readonly intermediateSize: number
  readonly rmsNormEps: number
  readonly maxPositions: number
  readonly tieWordEmbeddings: boolean
  readonly rope: RopeConfig
  readonly moe?: {
    readonly firstDenseLayers: number
    readonly layerFrequency: number
    readonly numExperts: number
    readonly numSharedExperts: number
    readonly intermediateSize: number
    readonly router: RouterOptions
  }
  readonly eosTokenIds: readonly number[]
}

type Json = Record<string, unknown>

/**
 * Reads a Hugging Face config.json by its fields, not by the model's name.
 * `rope_parameters` and `rope_scaling` + `rope_theta` mean the same.
 * @throws InvalidConfigError naming the field
 */
export function parseMlaConfig(json: unknown): MlaConfig {
  if (typeof json !== 'object' || json === null || Array.isArray(json)) {
    throw new InvalidConfigError('', 'config.json is not a JSON object.')
  }
  const config = json as Json
  const heads = count(config, 'num_attention_heads')
  const method = config.topk_method === undefined ? 'noaux_tc' : config.topk_method
  if (method !== 'greedy' && method !== 'group_limited_greedy' && method !== 'noaux_tc') {
    throw new InvalidConfigError(
      'topk_method',
      `topk_method is ${JSON.stringify(method)}; known are greedy, group_limited_greedy, noaux_tc.`,
    )
  }
  const scoring = config.scoring_func ?? (method === 'noaux_tc' ? 'sigmoid' : 'softmax')
  if (scoring !== 'softmax' && scoring !== 'sigmoid') {
    throw new InvalidConfigError(
      'scoring_func',
      `scoring_func is ${JSON.stringify(scoring)}; known are softmax and sigmoid.`,
    )
  }
  const numExperts = number(config, 'n_routed_experts', 0)
  const eos = config.eos_token_id
  return {
    vocabSize: count(config, 'vocab_size'),
    hiddenSize: count(config, 'hidden_size'),
    numLayers: count(config, 'num_hidden_layers'),
    numHeads: heads,
    qLoraRank: config.q_lora_rank == null ? undefined : count(config, 'q_lora_rank'),
    kvLoraRank: count(config, 'kv_lora_rank'),
    qkNopeHeadDim: count(config, 'qk_nope_head_dim'),
    qkRopeHeadDim: count(config, 'qk_rope_head_dim'),
    vHeadDim: count(config, 'v_head_dim'),
    intermediateSize: count(config, 'intermediate_size'),
    rmsNormEps: number(config, 'rms_norm_eps', 1e-6),
    maxPositions: count(config, 'max_position_embeddings'),
    tieWordEmbeddings: config.tie_word_embeddings === true,
    rope: parseRope(config),
    moe:
      numExperts === 0
        ? undefined
        : {
            firstDenseLayers: number(config, 'first_k_dense_replace', 0),
            layerFrequency: number(config, 'moe_layer_freq', 1),
            numExperts,
            numSharedExperts: number(config, 'n_shared_experts', 0),
            intermediateSize: count(config, 'moe_intermediate_size'),
            router: {
              scoring,
              method,
              topK: count(config, 'num_experts_per_tok'),
              numGroups: number(config, 'n_group', 1),
              topkGroups: number(config, 'topk_group', 1),
              normalize: config.norm_topk_prob === true,
              scale: number(config, 'routed_scaling_factor', 1),
            },
          },
    eosTokenIds: Array.isArray(eos) ? eos.filter((id) => typeof id === 'number') : typeof eos === 'number' ? [eos] : [],
  }
}

function parseRope(config: Json): RopeConfig {
  const given = (config.rope_parameters ?? config.rope_scaling ?? {}) as Json
  const theta = number(given, 'rope_theta', number(config, 'rope_theta', 10000))
  const interleaved = config.rope_interleave !== false
  const type = given.rope_type ?? given.type ?? 'default'
  if (type === 'default') return { theta, interleaved }
  if (type !== 'yarn') {
    throw new InvalidConfigError(
      'rope_scaling',
      `rope type ${JSON.stringify(type)} is not known; known are default and yarn.`,
    )
  }
  return {
    theta,
    interleaved,
    yarn: {
      factor: number(given, 'factor'),
      originalMaxPositions: number(given, 'original_max_position_embeddings'),
      betaFast: number(given, 'beta_fast', 32),
      betaSlow: number(given, 'beta_slow', 1),
      mscale: number(given, 'mscale', 0),
      mscaleAllDim: number(given, 'mscale_all_dim', 0),
    },
  }
}

function number(json: Json, field: string, fallback?: number): number {
  const value = json[field] ?? fallback
  if (typeof value !== 'number' || !Number.isFinite(value)) {
    throw new InvalidConfigError(field, `${field} is ${JSON.stringify(value) ?? 'missing'}; a finite number is needed.`)
  }
  return value
}

function count(json: Json, field: string): number {
  const value = number(json, field)
  if (!Number.isInteger(value) || value < 1) {
    throw new InvalidConfigError(field, `${field} is ${value}; a whole number ≥ 1 is needed.`)
  }
  return value
}
