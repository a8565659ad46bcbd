// FlashMLA's Hopper dense decode behind a C entry point, without PyTorch: fills the parameters as its Python interface does.
#include <algorithm>
#include <cmath>

#include "args.h"
#include "params.h"
#include "sm90/decode/dense/splitkv_mla.h"
#include "smxx/decode/combine/combine.h"
#include "smxx/decode/get_decoding_sched_meta/get_decoding_sched_meta.h"

extern "C" int flashmla_parts(const PeerArgs *a) { return std::max(a->num_sms / ((a->s_q * a->h_q + 63) / 64), 1); }

/** The scheduler: once for a set of lengths, as upstream's users run it. */
extern "C" void flashmla_plan(const PeerArgs *a) {
  GetDecodeSchedMetaParams p = {a->b, a->s_q, 64, 5, -1, -1, nullptr, nullptr, a->seq_lens,
                                reinterpret_cast<DecodingSchedMeta *>(a->meta), a->num_splits, flashmla_parts(a),
                                static_cast<cudaStream_t>(a->stream)};
  smxx::decode::run_get_decoding_sched_meta_kernel(p);
}

extern "C" void flashmla_decode(const PeerArgs *a) {
  const int h = a->h_q, rows = a->s_q * h;
  DenseAttnDecodeParams p{};
  p.b = a->b, p.s_q = a->s_q, p.q_seq_per_hk = rows, p.d = 576, p.d_v = 512;
  p.h_q = h, p.h_k = 1, p.q_head_per_hk = h, p.num_blocks = a->num_blocks;
  p.is_causal = a->causal && a->s_q > 1;
  p.scale_softmax = a->scale, p.scale_softmax_log2 = static_cast<float>(a->scale * M_LOG2E);
  p.q_ptr = a->q, p.k_ptr = a->kv, p.o_ptr = a->out, p.softmax_lse_ptr = a->lse;
  p.q_batch_stride = rows * 576L, p.q_row_stride = p.q_head_stride = 576;
  p.k_batch_stride = 64 * 576L, p.k_row_stride = p.k_head_stride = 576;
  p.o_batch_stride = rows * 512L, p.o_row_stride = 512, p.o_head_stride = rows * 512L;
  p.block_table = a->block_table, p.block_table_batch_stride = a->max_blocks, p.page_block_size = 64;
  p.seqlens_k_ptr = a->seq_lens;
  p.tile_scheduler_metadata_ptr = reinterpret_cast<DecodingSchedMeta *>(a->meta);
  p.num_sm_parts = flashmla_parts(a), p.num_splits_ptr = a->num_splits, p.total_num_splits = a->b + p.num_sm_parts;
  p.softmax_lseaccum_ptr = a->lse_accum, p.oaccum_ptr = a->out_accum;
  p.stream = static_cast<cudaStream_t>(a->stream);
  sm90::run_flash_splitkv_mla_kernel<cutlass::bfloat16_t>(p);
  CombineParams c = {a->b, a->s_q, h, 512, p.softmax_lse_ptr, p.o_ptr, rows, h, rows * 512, h * 512, 512,
                     p.softmax_lseaccum_ptr, p.oaccum_ptr, rows, h, rows * 512, h * 512, 512,
                     p.tile_scheduler_metadata_ptr, p.num_splits_ptr, p.num_sm_parts, nullptr, p.stream};
  smxx::decode::run_flash_mla_combine_kernel<cutlass::bfloat16_t>(c);
}
