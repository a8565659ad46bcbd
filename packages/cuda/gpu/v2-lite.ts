import { mkdtemp, open, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Model } from '@flashmla/engine'
import { backendOf } from './backend'
import type { Case, Machine } from './machine'

/** DeepSeek-V2-Lite as its authors published it (deepseek-ai/DeepSeek-V2-Lite, config.json), without the scaled rotary. */
const CONFIG = {
  architectures: ['DeepseekV2ForCausalLM'],
  model_type: 'deepseek_v2',
  vocab_size: 102400,
  hidden_size: 2048,
  intermediate_size: 10944,
  moe_intermediate_size: 1408,
  num_attention_heads: 16,
  n_shared_experts: 2,
  n_routed_experts: 64,
  routed_scaling_factor: 1,
  kv_lora_rank: 512,
  q_lora_rank: null,
  qk_rope_head_dim: 64,
  v_head_dim: 128,
  qk_nope_head_dim: 128,
  topk_method: 'greedy',
  n_group: 1,
  topk_group: 1,
  num_experts_per_tok: 6,
  moe_layer_freq: 1,
  first_k_dense_replace: 1,
  norm_topk_prob: false,
  scoring_func: 'softmax',
  hidden_act: 'silu',
  max_position_embeddings: 8192,
  rms_norm_eps: 1e-6,
  rope_theta: 10000,
  rope_scaling: null,
  attention_bias: false,
  tie_word_embeddings: false,
  bos_token_id: 100000,
  eos_token_id: 100001,
}
const LAYERS = 27
/** Layers that are made: one with a dense feed-forward and some with experts, 1.2 GB each. */
const MADE = 4
const BLOCK = 1 << 22
const PROMPT_TOKENS = 512
const BATCHES = [1, 4, 8, 16, 64]

type Named = readonly [name: string, shape: readonly number[]]

/** Names and shapes of the checkpoint. */
function tensors(): Named[] {
  const { vocab_size: vocab, hidden_size: hidden, num_attention_heads: heads, kv_lora_rank: rank } = CONFIG
  const { qk_rope_head_dim: rope, qk_nope_head_dim: nope, v_head_dim: v } = CONFIG
  const mlp = (prefix: string, inner: number): Named[] => [
    [`${prefix}.gate_proj.weight`, [inner, hidden]],
    [`${prefix}.up_proj.weight`, [inner, hidden]],
    [`${prefix}.down_proj.weight`, [hidden, inner]],
  ]
  const layers = Array.from({ length: MADE }, (_, layer): Named[] => {
    const at = `model.layers.${layer}`
    const inner = CONFIG.moe_intermediate_size
    return [
      [`${at}.input_layernorm.weight`, [hidden]],
      [`${at}.post_attention_layernorm.weight`, [hidden]],
      [`${at}.self_attn.q_proj.weight`, [heads * (nope + rope), hidden]],
      [`${at}.self_attn.kv_a_proj_with_mqa.weight`, [rank + rope, hidden]],
      [`${at}.self_attn.kv_a_layernorm.weight`, [rank]],
      [`${at}.self_attn.kv_b_proj.weight`, [heads * (nope + v), rank]],
      [`${at}.self_attn.o_proj.weight`, [hidden, heads * v]],
      ...(layer < CONFIG.first_k_dense_replace
        ? mlp(`${at}.mlp`, CONFIG.intermediate_size)
        : [
            [`${at}.mlp.gate.weight`, [CONFIG.n_routed_experts, hidden]] as Named,
            ...mlp(`${at}.mlp.shared_experts`, inner * CONFIG.n_shared_experts),
            ...Array.from({ length: CONFIG.n_routed_experts }, (_, e) => mlp(`${at}.mlp.experts.${e}`, inner)).flat(),
          ]),
    ]
  })
  return [
    ['model.embed_tokens.weight', [vocab, hidden]],
    ...layers.flat(),
    ['model.norm.weight', [hidden]],
    ['lm_head.weight', [vocab, hidden]],
  ]
}

/** A checkpoint of small random bf16 values, the same block over and over: only its sizes matter. */
async function makeCheckpoint(folder: string): Promise<void> {
  const header: Record<string, object> = {}
  let bytes = 0
  for (const [name, shape] of tensors()) {
    const size = shape.reduce((a, b) => a * b) * 2
    header[name] = { dtype: 'BF16', shape, data_offsets: [bytes, bytes + size] }
    bytes += size
  }
  const json = Buffer.from(JSON.stringify(header))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(json.length))
  const words = new Uint16Array(BLOCK / 2)
  let state = 17
  for (let i = 0; i < words.length; i++) {
    state = (state * 48271) % 2147483647
    words[i] = 0x3c80 | (state & 0x807f) // 0.0156 to 0.031, of either sign
  }
  const file = await open(join(folder, 'model.safetensors'), 'w')
  try {
    await file.write(length)
    await file.write(json)
    for (let at = 0; at < bytes; at += BLOCK) await file.write(words, 0, Math.min(BLOCK, bytes - at))
  } finally {
    await file.close()
  }
}

/** What a step takes, and what of it the host needs to queue it, in ms. */
interface StepTime {
  readonly whole: number
  readonly host: number
}

/** Steps without logits, one behind the other: a prompt of 512 tokens, then a token of each of some sequences behind such prompts. */
async function timeSteps(machine: Machine, folder: string, layers: number): Promise<StepTime[]> {
  await writeFile(join(folder, 'config.json'), JSON.stringify({ ...CONFIG, num_hidden_layers: layers }))
  const backend = await backendOf(machine, { attention: 'fast' })
  const model = await Model.load(folder, { backend, numBlocks: 1024, cacheFormat: 'bf16' })
  const prompt = Array.from({ length: PROMPT_TOKENS }, (_, i) => (i * 7919) % 100000)
  const last = model.sequence()
  /** The median of 7 rounds of some steps; logits of a token end each. */
  const time = async (steps: number, step: (i: number) => Promise<unknown>): Promise<StepTime> => {
    const rounds: StepTime[] = []
    for (let round = 0; round < 9; round++) {
      const start = performance.now()
      for (let i = 0; i < steps; i++) await step(i)
      const queued = performance.now()
      await model.step([{ sequence: last, tokens: [1], logits: 'last' }])
      rounds.push({ whole: (performance.now() - start) / (steps + 1), host: (queued - start) / steps })
    }
    return rounds.slice(2).sort((x, y) => x.whole - y.whole)[3]!
  }
  const found = [
    await time(8, async () => {
      const sequence = model.sequence()
      await model.step([{ sequence, tokens: prompt, logits: 'none' }])
      sequence.free()
    }),
  ]
  for (const batch of BATCHES) {
    const sequences = Array.from({ length: batch }, () => model.sequence())
    for (const sequence of sequences) await model.step([{ sequence, tokens: prompt, logits: 'none' }])
    found.push(
      await time(40, (i) =>
        model.step(sequences.map((sequence, s) => ({ sequence, tokens: [i * 64 + s], logits: 'none' }))),
      ),
    )
    for (const sequence of sequences) sequence.free()
  }
  last.free()
  model.dispose()
  return found
}

/** What a layer with experts takes: the difference of a model with some and one without. */
async function timeLayers(machine: Machine): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'flashmla-v2-lite-'))
  try {
    await makeCheckpoint(folder)
    const one = await timeSteps(machine, folder, 1)
    const some = await timeSteps(machine, folder, MADE)
    return ['a prompt of 512', ...BATCHES.map((batch) => `batch ${batch}`)]
      .map((what, i) => {
        const layer = (part: keyof StepTime) => (some[i]![part] - one[i]![part]) / (MADE - 1)
        const whole = one[i]!.whole + (LAYERS - 1) * layer('whole')
        return `${what} ${layer('whole').toFixed(3)} ms a layer (host ${layer('host').toFixed(3)}), ${whole.toFixed(1)} ms for ${LAYERS}`
      })
      .join('; ')
  } finally {
    await rm(folder, { recursive: true })
  }
}

/** Run only when they are asked for: gigabytes of disk and device memory. */
export const large: readonly Case[] = [['speed at the sizes of DeepSeek-V2-Lite, fast attention', timeLayers]]
