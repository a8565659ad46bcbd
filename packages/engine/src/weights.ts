import type { MlaConfig } from '@flashmla/latent'
import type { Backend, ExpertWeights, Tensor, Weight } from '@flashmla/spec'
import type { Checkpoint } from './checkpoint/checkpoint'
import type { WeightReader } from './weight-reader'
import { BackendReader, CheckingReader } from './weight-reader'

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

/**
 * Reads every tensor that the configuration calls for. All of them are looked up and their shapes compared before the
 * first is read; what was read is freed again when one fails.
 * @param progress hears each tensor read, and how many there are
 * @throws CheckpointError that names the file and tensor
 */
export async function loadWeights(
  checkpoint: Checkpoint,
  config: MlaConfig,
  backend: Backend,
  form: KvProjection['form'],
  progress?: (done: number, total: number) => void,
): Promise<ModelWeights> {
  const checking = new CheckingReader(checkpoint)
  await readModel(checking, config, form)
  const reader = new BackendReader(checkpoint, backend, (done) => progress?.(done, checking.count))
  try {
    return { ...(await readModel(reader, config, form)), owned: reader.owned }
  } catch (error) {
    for (const resource of reader.owned) resource.dispose()
    throw error
  }
}

/** Frees what `loadWeights` made. */
export function disposeWeights({ owned }: ModelWeights): void {
  for (const resource of owned) resource.dispose()
}

async function readModel(
  reader: WeightReader,
  config: MlaConfig,
  form: KvProjection['form'],
): Promise<Omit<ModelWeights, 'owned'>> {
  const { hiddenSize: d, vocabSize } = config
  const layers: LayerWeights[] = []
  for (let l = 0; l < config.numLayers; l++) layers.push(await readLayer(reader, config, form, l))
  const embed = await reader.weight('model.embed_tokens.weight', vocabSize, d)
  return {
    embed,
    layers,
    norm: await reader.vector('model.norm.weight', d),
    head: config.tieWordEmbeddings ? embed : await reader.weight('lm_head.weight', vocabSize, d),
  }
}

async function readLayer(
  reader: WeightReader,
  config: MlaConfig,
  form: KvProjection['form'],
  l: number,
): Promise<LayerWeights> {
  const { hiddenSize: d, numHeads: h, kvLoraRank: r, qkNopeHeadDim: nope, qkRopeHeadDim: rope, vHeadDim: v } = config
  const { moe, qLoraRank: q } = config
  const at = `model.layers.${l}`
  const attn = `${at}.self_attn`
  const kvB = `${attn}.kv_b_proj.weight`
  const sparse = moe && l >= moe.firstDenseLayers && l % moe.layerFrequency === 0 ? moe : undefined
  const experts: ExpertWeights[] = []
  for (let e = 0; sparse && e < sparse.numExperts; e++)
    experts.push(await readFeedForward(reader, `${at}.mlp.experts.${e}`, d, sparse.intermediateSize))
  return {
    inputNorm: await reader.vector(`${at}.input_layernorm.weight`, d),
    postNorm: await reader.vector(`${at}.post_attention_layernorm.weight`, d),
    qA: q
      ? {
          weight: await reader.weight(`${attn}.q_a_proj.weight`, q, d),
          norm: await reader.vector(`${attn}.q_a_layernorm.weight`, q),
        }
      : undefined,
    qB: await reader.weight(q ? `${attn}.q_b_proj.weight` : `${attn}.q_proj.weight`, h * (nope + rope), q ?? d),
    kvA: await reader.weight(`${attn}.kv_a_proj_with_mqa.weight`, r + rope, d),
    kvNorm: await reader.vector(`${attn}.kv_a_layernorm.weight`, r),
    projection:
      form === 'naive'
        ? { form, kvB: await reader.weight(kvB, h * (nope + v), r) }
        : { form, ...(await reader.absorbed(kvB, h, nope, v, r)) },
    o: await reader.weight(`${attn}.o_proj.weight`, d, h * v),
    dense: !sparse
      ? await readFeedForward(reader, `${at}.mlp`, d, config.intermediateSize)
      : sparse.numSharedExperts
        ? await readFeedForward(
            reader,
            `${at}.mlp.shared_experts`,
            d,
            sparse.intermediateSize * sparse.numSharedExperts,
          )
        : undefined,
    moe: sparse && {
      gate: await reader.weight(`${at}.mlp.gate.weight`, sparse.numExperts, d),
      bias:
        sparse.router.method === 'noaux_tc'
          ? await reader.vector(`${at}.mlp.gate.e_score_correction_bias`, sparse.numExperts)
          : undefined,
      experts,
    },
  }
}

async function readFeedForward(reader: WeightReader, name: string, d: number, inner: number): Promise<ExpertWeights> {
  return {
    gate: await reader.weight(`${name}.gate_proj.weight`, inner, d),
    up: await reader.weight(`${name}.up_proj.weight`, inner, d),
    down: await reader.weight(`${name}.down_proj.weight`, d, inner),
  }
}
