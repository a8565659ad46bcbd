// FlashAttention-3 in MLA mode behind a C entry point, without PyTorch: q is the rotary part, qv and v are the latent.
// The choices (paged TMA, splits, packing) are those of its own interface; its scheduler runs inside each call.
#include <algorithm>
#include <cuda_runtime.h>
#include <cutlass/numeric_types.h>

#include "args.h"
#include "flash.h"
#include "heuristics.h"
#include "tile_size.h"

using Element = cutlass::bfloat16_t;

static Flash_fwd_params parameters(const PeerArgs *a) {
  Flash_fwd_params p{};
  const long h = a->h_q, s = a->s_q;
  p.b = p.b_k = a->b, p.h = a->h_q, p.h_k = 1, p.seqlen_q = a->s_q, p.seqlen_k = a->max_blocks * 64;
  p.d = p.d_rounded = 64, p.dv = p.dv_rounded = 512;
  p.seqlen_q_rounded = (a->s_q + 127) / 128 * 128, p.seqlen_k_rounded = (p.seqlen_k + 127) / 128 * 128;
  p.total_q = a->b * a->s_q, p.total_k = a->b * p.seqlen_k;
  p.q_ptr = static_cast<Element *>(a->q) + 512, p.qv_ptr = a->q;
  p.k_ptr = static_cast<Element *>(a->kv) + 512, p.v_ptr = a->kv;
  p.o_ptr = a->out, p.softmax_lse_ptr = a->lse;
  p.q_row_stride = p.qv_row_stride = h * 576, p.q_head_stride = p.qv_head_stride = 576;
  p.q_batch_stride = p.qv_batch_stride = s * h * 576;
  p.k_row_stride = p.v_row_stride = p.k_head_stride = p.v_head_stride = 576;
  p.k_batch_stride = p.v_batch_stride = 64 * 576, p.v_dim_stride = 1;
  p.o_row_stride = h * 512, p.o_head_stride = 512, p.o_batch_stride = s * h * 512;
  p.scale_softmax = a->scale, p.is_bf16 = true, p.seqused_k = a->seq_lens;
  p.is_causal = a->causal && a->s_q > 1;
  p.window_size_left = p.seqlen_k - 1, p.window_size_right = p.is_causal ? 0 : a->s_q - 1;
  p.page_table = a->block_table, p.page_table_batch_stride = a->max_blocks, p.page_size = 64, p.num_pages = a->num_blocks;
  p.arch = 90, p.num_sm = a->num_sms;
  const auto tma = tile_size_fwd_sm90(64, 512, p.is_causal, false, 2, false, false, false);
  p.pagedkv_tma = 64 % std::get<1>(tma) == 0 && s * h > std::get<0>(tma);
  const auto tile = tile_size_fwd_sm90(64, 512, p.is_causal, false, 2, false, !p.pagedkv_tma, false);
  const int m_blocks = (s * h + std::get<0>(tile) - 1) / std::get<0>(tile);
  const int n_blocks = (p.seqlen_k + std::get<1>(tile) - 1) / std::get<1>(tile);
  p.num_splits = num_splits_heuristic(m_blocks, p.num_sm, n_blocks, m_blocks, p.seqlen_k * 576 * 2, p.is_causal, 128);
  p.pack_gqa = true;
  const int rounded = (p.b + 3) / 4 * 4;
  p.prepare_varlen_pdl = p.b <= 992, p.varlen_sort_batches = true, p.head_swizzle = p.is_causal;
  p.num_splits_dynamic_ptr = a->meta, p.num_m_blocks_ptr = a->meta + rounded;
  p.varlen_batch_idx_ptr = a->meta + 2 * rounded;
  p.num_nheads_in_l2_ptr = p.head_swizzle ? a->meta + 3 * rounded : nullptr;
  p.tile_count_semaphore_offset = rounded * (p.head_swizzle ? 4 : 3);
  p.tile_count_semaphore = a->meta + p.tile_count_semaphore_offset;
  p.oaccum_ptr = a->out_accum, p.softmax_lseaccum_ptr = a->lse_accum;
  p.oaccum_split_stride = a->b * h * s * 512, p.oaccum_batch_stride = h * s * 512;
  p.oaccum_head_stride = s * 512, p.oaccum_row_stride = 512;
  p.lseaccum_split_stride = a->b * h * s, p.lseaccum_batch_stride = h * s, p.lseaccum_head_stride = s;
  return p;
}

extern "C" int fa3_splits(const PeerArgs *a) { return parameters(a).num_splits; }

extern "C" void fa3_decode(const PeerArgs *a) {
  Flash_fwd_params p = parameters(a);
  const auto stream = static_cast<cudaStream_t>(a->stream);
  if (p.num_splits > 1) {
    if (p.pagedkv_tma) run_mha_fwd_<90, Element, 64, 512, true, false, false, true>(p, stream);
    else run_mha_fwd_<90, Element, 64, 512, true, true, false, true>(p, stream);
    run_mha_fwd_combine_<Element, float, 128>(p, stream, true);
  } else {
    if (p.pagedkv_tma) run_mha_fwd_<90, Element, 64, 512, false, false, false, true>(p, stream);
    else run_mha_fwd_<90, Element, 64, 512, false, true, false, true>(p, stream);
  }
}
