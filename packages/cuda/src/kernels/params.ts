// Mirror of kernels/include/flashmla_params.h: fields in their order. A test compares both sides.
import { Struct } from './struct'

/** FlashMlaDType */
export const DTYPES = { bf16: 0, f16: 1, f32: 2 } as const
/** FlashMlaCacheFormat */
export const CACHE_FORMATS = { bf16: 0, f16: 1, fp8: 2 } as const

/** Bytes of an MlaSplit, which only kernels write. */
export const SPLIT_BYTES = 32

export const MlaDecodeParams = new Struct('MlaDecodeParams', {
  q: 'ptr',
  kv: 'ptr',
  block_table: 'ptr',
  seq_lens: 'ptr',
  query_start: 'ptr',
  out: 'ptr',
  lse: 'ptr',
  partial_out: 'ptr',
  partial_lse: 'ptr',
  block_table_stride: 'i64',
  kv_page_stride: 'i64',
  kv_row_stride: 'i64',
  softmax_scale: 'f32',
  batch: 'i32',
  s_q: 'i32',
  h_q: 'i32',
  page_size: 'i32',
  out_dtype: 'i32',
  workers: 'i32',
  tiles_per_group: 'i32',
  min_blocks: 'i32',
  tile_overhead: 'i32',
  tile_rows: 'i32',
  split_by_tile: 'i32',
  splits: 'ptr',
  parts_ready: 'ptr',
  num_blocks: 'i32',
  group_workers: 'i32',
  groups: 'i32',
  first_lead: 'i32',
  block_ps: 'i32',
  reserved: 'i32',
})

export const MlaAppendParams = new Struct('MlaAppendParams', {
  latent: 'ptr',
  norm_weight: 'ptr',
  rotary_table: 'ptr',
  positions: 'ptr',
  slots: 'ptr',
  cache: 'ptr',
  cache_page_stride: 'i64',
  cache_row_stride: 'i64',
  norm_eps: 'f32',
  n: 'i32',
  page_size: 'i32',
  latent_dtype: 'i32',
  interleaved: 'i32',
  format: 'i32',
})

export const MlaCastParams = new Struct('MlaCastParams', {
  source: 'ptr',
  target: 'ptr',
  n: 'i64',
  target_dtype: 'i32',
  reserved: 'i32',
})
