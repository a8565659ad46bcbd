import type { Checkpoint } from '@flashmla/engine'
import type { MlaConfig } from '@flashmla/latent'
import { absorbKvB } from '@flashmla/latent'
import type { GgufTensor } from './write'

/**
 * The checkpoint's tensors under llama.cpp's names. Vectors and the router stay float32, as its own converter keeps them;
 * kv_b_proj is split into W_UK `[h, rank, nope]` and W_UV `[h, v, rank]`; a layer's experts are stacked.
 */
export function deepseek2Tensors(checkpoint: Checkpoint, config: MlaConfig, dtype: 'f32' | 'bf16'): GgufTensor[] {
  const { hiddenSize: d, numHeads: h, kvLoraRank: r, qkNopeHeadDim: nope, qkRopeHeadDim: rope, vHeadDim: v } = config
  const { moe, qLoraRank: q, vocabSize } = config
  const tensors: GgufTensor[] = []
  const add = (name: string, source: string, shape: number[], as = shape.length > 1 ? dtype : 'f32') =>
    tensors.push({ name, dtype: as, shape, data: () => checkpoint.read(source, shape) })
  const stack = (name: string, count: number, source: (e: number) => string, shape: readonly [number, number]) =>
    tensors.push({
      name,
      dtype,
      shape: [count, ...shape],
      data: async () => {
        const all = new Float32Array(count * shape[0] * shape[1])
        for (let e = 0; e < count; e++) all.set(await checkpoint.read(source(e), shape), e * shape[0] * shape[1])
        return all
      },
    })

  add('token_embd.weight', 'model.embed_tokens.weight', [vocabSize, d])
  add('output_norm.weight', 'model.norm.weight', [d])
  if (!config.tieWordEmbeddings) add('output.weight', 'lm_head.weight', [vocabSize, d])
  for (let l = 0; l < config.numLayers; l++) {
    const [to, from] = [`blk.${l}`, `model.layers.${l}`]
    const attn = `${from}.self_attn`
    add(`${to}.attn_norm.weight`, `${from}.input_layernorm.weight`, [d])
    add(`${to}.ffn_norm.weight`, `${from}.post_attention_layernorm.weight`, [d])
    if (q) {
      add(`${to}.attn_q_a.weight`, `${attn}.q_a_proj.weight`, [q, d])
      add(`${to}.attn_q_a_norm.weight`, `${attn}.q_a_layernorm.weight`, [q])
      add(`${to}.attn_q_b.weight`, `${attn}.q_b_proj.weight`, [h * (nope + rope), q])
    } else {
      add(`${to}.attn_q.weight`, `${attn}.q_proj.weight`, [h * (nope + rope), d])
    }
    add(`${to}.attn_kv_a_mqa.weight`, `${attn}.kv_a_proj_with_mqa.weight`, [r + rope, d])
    add(`${to}.attn_kv_a_norm.weight`, `${attn}.kv_a_layernorm.weight`, [r])
    const split = async () =>
      absorbKvB(await checkpoint.read(`${attn}.kv_b_proj.weight`, [h * (nope + v), r]), h, nope, v, r)
    tensors.push(
      { name: `${to}.attn_k_b.weight`, dtype, shape: [h, r, nope], data: async () => (await split()).uk },
      { name: `${to}.attn_v_b.weight`, dtype, shape: [h, v, r], data: async () => (await split()).uv },
    )
    add(`${to}.attn_output.weight`, `${attn}.o_proj.weight`, [d, h * v])

    const feedForward = (suffix: string, source: string, inner: number) => {
      add(`${to}.ffn_gate${suffix}.weight`, `${source}.gate_proj.weight`, [inner, d])
      add(`${to}.ffn_up${suffix}.weight`, `${source}.up_proj.weight`, [inner, d])
      add(`${to}.ffn_down${suffix}.weight`, `${source}.down_proj.weight`, [d, inner])
    }
    if (!moe || l < moe.firstDenseLayers) {
      feedForward('', `${from}.mlp`, config.intermediateSize)
      continue
    }
    const { numExperts, intermediateSize: inner } = moe
    add(`${to}.ffn_gate_inp.weight`, `${from}.mlp.gate.weight`, [numExperts, d], 'f32')
    if (moe.router.method === 'noaux_tc')
      add(`${to}.exp_probs_b.bias`, `${from}.mlp.gate.e_score_correction_bias`, [numExperts])
    const expert = (kind: string) => (e: number) => `${from}.mlp.experts.${e}.${kind}_proj.weight`
    stack(`${to}.ffn_gate_exps.weight`, numExperts, expert('gate'), [inner, d])
    stack(`${to}.ffn_up_exps.weight`, numExperts, expert('up'), [inner, d])
    stack(`${to}.ffn_down_exps.weight`, numExperts, expert('down'), [d, inner])
    if (moe.numSharedExperts) feedForward('_shexp', `${from}.mlp.shared_experts`, inner * moe.numSharedExperts)
  }
  return tensors
}
