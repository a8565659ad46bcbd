// Mirror of kernels/include/flashmla_model_params.h: fields in their order. A test compares both sides.
import { Struct } from './struct'

/** FlashMlaValueType */
export const VALUE_TYPES = { bf16: 0, f16: 1, f32: 2 } as const
/** FlashMlaRowFormat */
export const ROW_FORMATS = { f32: 0, bf16: 1, fp8V32: 2, fp8V4: 3 } as const
export type RowFormat = keyof typeof ROW_FORMATS

/** Bytes of an MlaExpert: three matrix pointers, their three dtypes from 24 on, their three tensor maps from 40 on. */
export const EXPERT_BYTES = 64

export const MlaTakeRowsParams = new Struct('MlaTakeRowsParams', {
  table: 'ptr',
  ids: 'ptr',
  out: 'ptr',
  n: 'i64',
  d: 'i64',
  rows: 'i64',
  table_dtype: 'i32',
  reserved: 'i32',
})

export const MlaNormParams = new Struct('MlaNormParams', {
  x: 'ptr',
  weight: 'ptr',
  out: 'ptr',
  n: 'i64',
  d: 'i64',
  eps: 'f32',
  reserved: 'i32',
})

export const MlaColumnsParams = new Struct('MlaColumnsParams', {
  x: 'ptr',
  out: 'ptr',
  rows: 'i64',
  x_stride: 'i64',
  out_stride: 'i64',
  width: 'i64',
})

export const MlaRotaryParams = new Struct('MlaRotaryParams', {
  x: 'ptr',
  out: 'ptr',
  table: 'ptr',
  positions: 'ptr',
  rows: 'i64',
  stride: 'i64',
  out_stride: 'i64',
  rows_per_position: 'i64',
  max_positions: 'i64',
  pairs: 'i32',
  interleaved: 'i32',
})

export const MlaElementsParams = new Struct('MlaElementsParams', {
  out: 'ptr',
  a: 'ptr',
  b: 'ptr',
  n: 'i64',
})

export const MlaConvertParams = new Struct('MlaConvertParams', {
  source: 'ptr',
  target: 'ptr',
  n: 'i64',
  source_dtype: 'i32',
  target_dtype: 'i32',
})

export const MlaArgmaxParams = new Struct('MlaArgmaxParams', {
  logits: 'ptr',
  ids: 'ptr',
  n: 'i64',
  vocab: 'i64',
})

export const MlaSampleParams = new Struct('MlaSampleParams', {
  logits: 'ptr',
  rows: 'ptr',
  ids: 'ptr',
  n: 'i64',
  vocab: 'i64',
})

export const MlaRouteParams = new Struct('MlaRouteParams', {
  logits: 'ptr',
  bias: 'ptr',
  ids: 'ptr',
  weights: 'ptr',
  n: 'i64',
  experts: 'i32',
  top_k: 'i32',
  sigmoid: 'i32',
  num_groups: 'i32',
  topk_groups: 'i32',
  group_best: 'i32',
  normalize: 'i32',
  scale: 'f32',
})

export const MlaLinearParams = new Struct('MlaLinearParams', {
  x: 'ptr',
  weight: 'ptr',
  out: 'ptr',
  n: 'i64',
  o: 'i64',
  i: 'i64',
  x_stride: 'i64',
  x_head_stride: 'i64',
  out_stride: 'i64',
  out_head_stride: 'i64',
  heads: 'i32',
  weight_dtype: 'i32',
  vector: 'i32',
  add: 'i32',
  weight_map: 'ptr',
  up_map: 'ptr',
})

export const MlaLinearRowsParams = new Struct('MlaLinearRowsParams', {
  x: 'ptr',
  weight: 'ptr',
  up: 'ptr',
  out: 'ptr',
  other_weight: 'ptr',
  other_up: 'ptr',
  other_out: 'ptr',
  n: 'i64',
  i: 'i64',
  o: 'i64',
  other_o: 'i64',
  weight_dtype: 'i32',
  other_dtype: 'i32',
  vector: 'i32',
  blocks: 'i32',
  add: 'i32',
  reserved: 'i32',
})

export const MlaExpertParams = new Struct('MlaExpertParams', {
  x: 'ptr',
  out: 'ptr',
  ids: 'ptr',
  weights: 'ptr',
  experts: 'ptr',
  gate: 'ptr',
  up: 'ptr',
  down: 'ptr',
  order: 'ptr',
  place: 'ptr',
  tiles: 'ptr',
  n: 'i64',
  hidden: 'i64',
  inner: 'i64',
  choices: 'i32',
  count: 'i32',
  stage: 'i32',
  vector: 'i32',
  most_tiles: 'i32',
  reserved: 'i32',
})

export const MlaAppendRowsParams = new Struct('MlaAppendRowsParams', {
  latent: 'ptr',
  slots: 'ptr',
  cache: 'ptr',
  n: 'i64',
  num_blocks: 'i64',
  page_size: 'i32',
  format: 'i32',
  kv_lora_rank: 'i32',
  rope_dim: 'i32',
})

export const MlaAppendLatentsParams = new Struct('MlaAppendLatentsParams', {
  latent: 'ptr',
  norm: 'ptr',
  table: 'ptr',
  positions: 'ptr',
  slots: 'ptr',
  cache: 'ptr',
  n: 'i64',
  num_blocks: 'i64',
  max_positions: 'i64',
  page_size: 'i32',
  format: 'i32',
  kv_lora_rank: 'i32',
  rope_dim: 'i32',
  eps: 'f32',
  interleaved: 'i32',
})

export const MlaAttendParams = new Struct('MlaAttendParams', {
  q: 'ptr',
  out: 'ptr',
  lse: 'ptr',
  cache: 'ptr',
  query_start: 'ptr',
  seq_lens: 'ptr',
  block_table: 'ptr',
  partial_out: 'ptr',
  partial_lse: 'ptr',
  block_table_stride: 'i64',
  num_blocks: 'i64',
  t: 'i32',
  h: 'i32',
  b: 'i32',
  page_size: 'i32',
  format: 'i32',
  kv_lora_rank: 'i32',
  rope_dim: 'i32',
  tile_queries: 'i32',
  splits: 'i32',
  scale: 'f32',
  vector: 'i32',
  reserved: 'i32',
})

export const MlaNaiveParams = new Struct('MlaNaiveParams', {
  q: 'ptr',
  out: 'ptr',
  state: 'ptr',
  cache: 'ptr',
  blocks: 'ptr',
  latents: 'ptr',
  expanded: 'ptr',
  first_query: 'i64',
  num_blocks: 'i64',
  queries: 'i32',
  seq_len: 'i32',
  first: 'i32',
  count: 'i32',
  h: 'i32',
  nope: 'i32',
  v: 'i32',
  page_size: 'i32',
  format: 'i32',
  kv_lora_rank: 'i32',
  rope_dim: 'i32',
  scale: 'f32',
})
