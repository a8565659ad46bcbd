import type { RouterOptions } from '@flashmla/spec'
import { InvalidConfigError } from '@flashmla/spec'
import { Fields, type Json } from './fields'

/** Rotary embedding of the decoupled part: plain, or stretched by YaRN (arXiv 2309.00071). */
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
    /** Replaces the magnitude that follows from the mscales. */
    readonly attentionFactor?: number
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

/**
 * Reads a Hugging Face config.json by its fields, not by the model's name: DeepSeek V2, V2-Lite, V3, R1, Kimi K2 and
 * whatever else is built the same. `rope_parameters` and `rope_scaling` + `rope_theta` mean the same.
 * A router without `topk_method` is noaux_tc, as V3's is, unless `scoring_func` is softmax, as V2's is.
 * @throws InvalidConfigError naming the field
 */
export function parseMlaConfig(json: unknown): MlaConfig {
  if (typeof json !== 'object' || json === null || Array.isArray(json)) {
    throw new InvalidConfigError('', 'config.json is not a JSON object.')
  }
  const fields = new Fields(json as Json)
  fields.oneOf('hidden_act', ['silu'], 'silu')
  for (const field of ['attention_bias', 'mlp_bias']) {
    if (fields.flag(field, false)) throw fields.bad(field, 'the MLA models known here have no biases')
  }
  const ropeDim = fields.count('qk_rope_head_dim')
  if (ropeDim % 2 !== 0) throw fields.bad('qk_rope_head_dim', 'an even number is needed, as it is rotated in pairs')
  return {
    vocabSize: fields.count('vocab_size'),
    hiddenSize: fields.count('hidden_size'),
    numLayers: fields.count('num_hidden_layers'),
    numHeads: fields.count('num_attention_heads'),
    qLoraRank: fields.json.q_lora_rank == null ? undefined : fields.count('q_lora_rank'),
    kvLoraRank: fields.count('kv_lora_rank'),
    qkNopeHeadDim: fields.count('qk_nope_head_dim'),
    qkRopeHeadDim: ropeDim,
    vHeadDim: fields.count('v_head_dim'),
    intermediateSize: fields.count('intermediate_size'),
    rmsNormEps: fields.positive('rms_norm_eps', 1e-6),
    maxPositions: fields.count('max_position_embeddings'),
    tieWordEmbeddings: fields.flag('tie_word_embeddings', false),
    rope: parseRope(fields),
    moe: fields.count('n_routed_experts', 0, 0) === 0 ? undefined : parseExperts(fields),
    eosTokenIds: parseEos(fields),
  }
}

function parseExperts(fields: Fields): MlaConfig['moe'] {
  const fallback = fields.json.scoring_func === 'softmax' ? 'greedy' : 'noaux_tc'
  const method = fields.oneOf('topk_method', ['greedy', 'group_limited_greedy', 'noaux_tc'], fallback)
  const numExperts = fields.count('n_routed_experts')
  const numGroups = fields.count('n_group', 1)
  const topkGroups = fields.count('topk_group', 1)
  const topK = fields.count('num_experts_per_tok')
  if (numExperts % numGroups !== 0) throw fields.bad('n_group', `it must divide n_routed_experts, ${numExperts}`)
  if (topkGroups > numGroups) throw fields.bad('topk_group', `it can't be more than n_group, ${numGroups}`)
  const eligible = method === 'greedy' ? numExperts : (numExperts / numGroups) * topkGroups
  if (topK > eligible) throw fields.bad('num_experts_per_tok', `${eligible} experts can be chosen from`)
  return {
    firstDenseLayers: fields.count('first_k_dense_replace', 0, 0),
    layerFrequency: fields.count('moe_layer_freq', 1),
    numExperts,
    numSharedExperts: fields.count('n_shared_experts', 0, 0),
    intermediateSize: fields.count('moe_intermediate_size'),
    router: {
      scoring: fields.oneOf('scoring_func', ['softmax', 'sigmoid'], method === 'noaux_tc' ? 'sigmoid' : 'softmax'),
      method,
      topK,
      numGroups,
      topkGroups,
      normalize: fields.flag('norm_topk_prob', false),
      scale: fields.positive('routed_scaling_factor', 1),
    },
  }
}

function parseEos({ json }: Fields): readonly number[] {
  const given = json.eos_token_id ?? []
  const ids: unknown[] = Array.isArray(given) ? given : [given]
  if (!ids.every((id): id is number => Number.isSafeInteger(id) && (id as number) >= 0)) {
    throw new Fields(json).bad('eos_token_id', 'a token id or a list of them is needed')
  }
  return ids
}

function parseRope(fields: Fields): RopeConfig {
  const field = fields.json.rope_parameters == null ? 'rope_scaling' : 'rope_parameters'
  const given = fields.json[field] ?? {}
  if (typeof given !== 'object' || Array.isArray(given)) throw fields.bad(field, 'an object is needed')
  const rope = new Fields(given as Json)
  const theta = rope.json.rope_theta == null ? fields.positive('rope_theta', 10000) : rope.positive('rope_theta')
  const interleaved = fields.flag('rope_interleave', true)
  const type = rope.json.rope_type ?? rope.json.type ?? 'default'
  if (type === 'default') return { theta, interleaved }
  if (type !== 'yarn') {
    throw new InvalidConfigError(field, `${field} has the type ${JSON.stringify(type)}; known are default and yarn.`)
  }
  return {
    theta,
    interleaved,
    yarn: {
      factor: rope.positive('factor'),
      originalMaxPositions: rope.count('original_max_position_embeddings'),
      betaFast: rope.positive('beta_fast', 32),
      betaSlow: rope.positive('beta_slow', 1),
      mscale: rope.number('mscale', 0),
      mscaleAllDim: rope.number('mscale_all_dim', 0),
      ...(rope.json.attention_factor == null ? {} : { attentionFactor: rope.positive('attention_factor') }),
    },
  }
}
