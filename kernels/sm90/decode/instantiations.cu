#include "../../common/combine.h"
#include "kernel.h"

using namespace flashmla;

#define MLA_DECODE(name, type, gather, parts, paced)                                                            \
  extern "C" __global__ void __launch_bounds__(decode::kThreads, 1)                                             \
      name(const __grid_constant__ MlaDecodeParams p, const __grid_constant__ CUtensorMap q,                    \
           const __grid_constant__ CUtensorMap kv, const __grid_constant__ CUtensorMap kv_tile) {               \
    extern __shared__ uint8_t raw[];                                                                            \
    decode::decode<type, gather, decode::Parts::parts, paced>(p, &q, &kv, &kv_tile, raw);                       \
  }

MLA_DECODE(mla_decode_bf16, Bf16, false, kCombined, false)
MLA_DECODE(mla_decode_bf16_gather, Bf16, true, kCombined, false)
MLA_DECODE(mla_decode_bf16_merge, Bf16, false, kMerged, false)
MLA_DECODE(mla_decode_bf16_merge_paced, Bf16, false, kMerged, true)
MLA_DECODE(mla_decode_bf16_share, Bf16, false, kShared, false)
MLA_DECODE(mla_decode_f16, F16, false, kCombined, false)
MLA_DECODE(mla_decode_f16_gather, F16, true, kCombined, false)
MLA_DECODE(mla_decode_f16_merge, F16, false, kMerged, false)
MLA_DECODE(mla_decode_f16_merge_paced, F16, false, kMerged, true)
MLA_DECODE(mla_decode_f16_share, F16, false, kShared, false)

extern "C" __global__ void __launch_bounds__(512, 2) mla_combine(const __grid_constant__ MlaDecodeParams p) { combine<false>(p); }
extern "C" __global__ void __launch_bounds__(512, 2) mla_combine_f16(const __grid_constant__ MlaDecodeParams p) { combine<true>(p); }
extern "C" __global__ void __launch_bounds__(256, 2) mla_combine_rows(const __grid_constant__ MlaDecodeParams p) { combine_rows_only<false>(p); }
extern "C" __global__ void __launch_bounds__(256, 2) mla_combine_rows_f16(const __grid_constant__ MlaDecodeParams p) { combine_rows_only<true>(p); }
