import type { MlaConfig } from '@flashmla/latent'
import { absorbKvB } from '@flashmla/latent'
import type { Backend, ExpertWeights, Tensor, Weight } from '@flashmla/spec'
import type { Checkpoint } from './checkpoint/checkpoint'

type Vector = Tensor<'f32'>

/** The up-projection of the latent: as it is stored, or split for absorption. */
export type KvProjection =
  | {
      readonly form: 'naive'
      /** `[h · (nope + v), kvLoraRank]` */
      readonly kvB: Weight
    }
  | {
      readonly form: 'absorbed'
      /** W_UK `[h, kvLoraRank, nope]` */
      readonly uk: Weight
      /** W_UV `[h, v, kvLoraRank]` */
      readonly uv: Weight
    }

export interface LayerWeights {
  readonly inputNorm: Vector
  readonly postNorm: Vector
  readonly qA?: { readonly weight: Weight; readonly norm: Vector }
  readonly qB: Weight
  readonly kvA: Weight
  readonly kvNorm: Vector
  readonly projection: KvProjection
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
  /** All of them, each once. */
  readonly owned: readonly { dispose(): void }[]
}

/** Reads every tensor the configuration calls for; `progress` hears each one. What was read is freed again when one fails. */
export async function loadWeights(
  checkpoint: Checkpoint,
  config: MlaConfig,
  backend: Backend,
  form: KvProjection['form'],
  progress?: (name: string) => void,
): Promise<ModelWeights> {
  const owned: { dispose(): void }[] = []
  const own = <T extends { dispose(): void }>(resource: T): T => {
    owned.push(resource)
    return resource
  }
  const host = async (name: string, shape: readonly number[]) => {
    const data = await checkpoint.read(name, shape)
    progress?.(name)
    return data
  }
  const get = async (name: string, ...shape: number[]): Promise<Weight> => {
    const weight = own(await backend.weight(checkpoint.source(name, shape)))
    progress?.(name)
    return weight
  }
  const vector = async (name: string, size: number): Promise<Vector> => {
    const tensor = own(backend.tensor('f32', [size]))
    backend.write(tensor, await host(name, [size]))
    return tensor
  }
  /** A weight that is computed on the host from the checkpoint's. */
  const computed = async (name: string, data: Float32Array, ...shape: number[]): Promise<Weight> =>
    own(
      await backend.weight({
        name,
        dtype: 'f32',
        shape,
        read: async (target) => target.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)),
      }),
    )
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
  const projection = async (name: string): Promise<KvProjection> => {
    if (form === 'naive') return { form, kvB: await get(name, h * (nope + v), r) }
    const { uk, uv } = absorbKvB(await host(name, [h * (nope + v), r]), h, nope, v, r)
    return {
      form,
      uk: await computed(`${name}, W_UK`, uk, h, r, nope),
      uv: await computed(`${name}, W_UV`, uv, h, v, r),
    }
  }
  const layer = async (l: number): Promise<LayerWeights> => {
    const at = `model.layers.${l}`
    const attn = `${at}.self_attn`
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
      projection: await projection(`${attn}.kv_b_proj.weight`),
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
  try {
    const layers: LayerWeights[] = []
    for (let l = 0; l < config.numLayers; l++) layers.push(await layer(l))
    const embed = await get('model.embed_tokens.weight', config.vocabSize, d)
    return {
      embed,
      layers,
      norm: await vector('model.norm.weight', d),
      head: config.tieWordEmbeddings ? embed : await get('lm_head.weight', config.vocabSize, d),
      owned,
    }
  } catch (error) {
    for (const resource of owned) resource.dispose()
    throw error
  }
}

/** Frees what `loadWeights` made. */
export function disposeWeights({ owned }: ModelWeights): void {
  for (const resource of owned) resource.dispose()
}
