import type { MlaConfig } from '@flashmla/latent'
import { absorbKvB } from '@flashmla/latent'
import type { Backend, ExpertWeights, Tensor, Weight } from '@flashmla/spec'
import type { Checkpoint } from './checkpoint/checkpoint'

type Vector = Tensor<'f32'>

export interface LayerWeights {
  readonly inputNorm: Vector
  readonly postNorm: Vector
  readonly qA?: { readonly weight: Weight; readonly norm: Vector }
  readonly qB: Weight
  readonly kvA: Weight
  readonly kvNorm: Vector
  readonly kvB: Weight
  /** W_UK `[h, kvLoraRank, nope]` */
  readonly uk: Weight
  /** W_UV `[h, v, kvLoraRank]` */
  readonly uv: Weight
  readonly o: Weight
  /** The dense layer's feed-forward, or the shared experts. */
  readonly dense?: ExpertWeights
  readonly moe?: { readonly gate: Weight; readonly bias?: Vector; readonly experts: readonly ExpertWeights[] }
}

export interface ModelWeights {
  readonly embed: Weight
  readonly norm: Vector
  readonly head: Weight
  readonly layers: readonly LayerWeights[]
}

/** Reads every tensor the configuration calls for; `progress` hears each one. */
export async function loadWeights(
  checkpoint: Checkpoint,
  config: MlaConfig,
  backend: Backend,
  progress?: (name: string) => void,
): Promise<ModelWeights> {
  const host = async (name: string, shape: readonly number[]) => {
    const data = await checkpoint.read(name, shape)
    progress?.(name)
    return data
  }
  const get = async (name: string, ...shape: number[]): Promise<Weight> => {
    const weight = await backend.weight(checkpoint.source(name, shape))
    progress?.(name)
    return weight
  }
  const vector = async (name: string, size: number): Promise<Vector> => {
    const tensor = backend.tensor('f32', [size])
    backend.write(tensor, await host(name, [size]))
    return tensor
  }
  /** A weight that is computed on the host from the checkpoint's. */
  const computed = (name: string, data: Float32Array, ...shape: number[]): Promise<Weight> =>
    backend.weight({
      name,
      dtype: 'f32',
      shape,
      read: async (target) => target.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)),
    })
  const {
    hiddenSize: d,
    numHeads: h,
    kvLoraRank: r,
    qkNopeHeadDim: nope,
    qkRopeHeadDim: rope,
    vHeadDim: v,
    moe,
  } = config
  const mlp = async (name: string, inner: number): Promise<ExpertWeights> => ({
    gate: await get(`${name}.gate_proj.weight`, inner, d),
    up: await get(`${name}.up_proj.weight`, inner, d),
    down: await get(`${name}.down_proj.weight`, d, inner),
  })
  const layer = async (l: number): Promise<LayerWeights> => {
    const at = `model.layers.${l}`
    const attn = `${at}.self_attn`
    const kvB = await host(`${attn}.kv_b_proj.weight`, [h * (nope + v), r])
    const { uk, uv } = absorbKvB(kvB, h, nope, v, r)
    const sparse = moe && l >= moe.firstDenseLayers && l % moe.layerFrequency === 0 ? moe : undefined
    const experts: ExpertWeights[] = []
    if (sparse)
      for (let e = 0; e < sparse.numExperts; e++)
        experts.push(await mlp(`${at}.mlp.experts.${e}`, sparse.intermediateSize))
    const q = config.qLoraRank
    return {
      inputNorm: await vector(`${at}.input_layernorm.weight`, d),
      postNorm: await vector(`${at}.post_attention_layernorm.weight`, d),
      qA: q
        ? { weight: await get(`${attn}.q_a_proj.weight`, q, d), norm: await vector(`${attn}.q_a_layernorm.weight`, q) }
        : undefined,
      qB: await get(q ? `${attn}.q_b_proj.weight` : `${attn}.q_proj.weight`, h * (nope + rope), q ?? d),
      kvA: await get(`${attn}.kv_a_proj_with_mqa.weight`, r + rope, d),
      kvNorm: await vector(`${attn}.kv_a_layernorm.weight`, r),
      kvB: await computed('kv_b_proj', kvB, h * (nope + v), r),
      uk: await computed('w_uk', uk, h, r, nope),
      uv: await computed('w_uv', uv, h, v, r),
      o: await get(`${attn}.o_proj.weight`, d, h * v),
      dense: !sparse
        ? await mlp(`${at}.mlp`, config.intermediateSize)
        : sparse.numSharedExperts
          ? await mlp(`${at}.mlp.shared_experts`, sparse.intermediateSize * sparse.numSharedExperts)
          : undefined,
      moe: sparse && {
        gate: await get(`${at}.mlp.gate.weight`, sparse.numExperts, d),
        bias:
          sparse.router.method === 'noaux_tc'
            ? await vector(`${at}.mlp.gate.e_score_correction_bias`, sparse.numExperts)
            : undefined,
        experts,
      },
    }
  }
  const layers: LayerWeights[] = []
  for (let l = 0; l < config.numLayers; l++) layers.push(await layer(l))
  const embed = await get('model.embed_tokens.weight', config.vocabSize, d)
  return {
    embed,
    layers,
    norm: await vector('model.norm.weight', d),
    head: config.tieWordEmbeddings ? embed : await get('lm_head.weight', config.vocabSize, d),
  }
}
