#include "combine.h"
#include "kernel.h"

using namespace flashmla;

// Registers as if for 512 threads: what is left is for blocks of mla_combine_few beside them.
#define MLA_DECODE_FEW(name, type, rows, merges, threads)                                                              \
  extern "C" __global__ void __launch_bounds__(threads, 1)                                                             \
      name(const __grid_constant__ MlaDecodeParams p, const __grid_constant__ CUtensorMap q,                           \
           const __grid_constant__ CUtensorMap kv, const __grid_constant__ CUtensorMap kv_tile) {                      \
    extern __shared__ uint8_t raw[];                                                                                   \
    decode_few::decode<type, rows, merges>(p, &q, &kv, &kv_tile, raw);                                                 \
  }

MLA_DECODE_FEW(mla_decode_bf16_few, Bf16, 16, false, 512)
MLA_DECODE_FEW(mla_decode_bf16_few_merge, Bf16, 16, true, 512)
MLA_DECODE_FEW(mla_decode_f16_few, F16, 16, false, 512)
MLA_DECODE_FEW(mla_decode_f16_few_merge, F16, 16, true, 512)
MLA_DECODE_FEW(mla_decode_bf16_few32, Bf16, 32, false, 512)
MLA_DECODE_FEW(mla_decode_bf16_few32_merge, Bf16, 32, true, decode_few::kThreads)
MLA_DECODE_FEW(mla_decode_f16_few32, F16, 32, false, 512)
MLA_DECODE_FEW(mla_decode_f16_few32_merge, F16, 32, true, decode_few::kThreads)

#define MLA_COMBINE_FEW(name, combine, rows)                                                                                          \
  extern "C" __global__ void __launch_bounds__(decode_few::kCombineThreads, 8) name(const __grid_constant__ MlaDecodeParams p) {      \
    decode_few::combine<rows>(p);                                                                                                     \
  }

MLA_COMBINE_FEW(mla_combine_few, combine, 16)
MLA_COMBINE_FEW(mla_combine_few_ragged, combine_ragged, 16)
MLA_COMBINE_FEW(mla_combine_few32, combine, 32)
MLA_COMBINE_FEW(mla_combine_few32_ragged, combine_ragged, 32)
MLA_COMBINE_FEW(mla_combine_few64, combine, 64)
MLA_COMBINE_FEW(mla_combine_few64_ragged, combine_ragged, 64)
MLA_COMBINE_FEW(mla_combine_few128, combine, 128)
MLA_COMBINE_FEW(mla_combine_few128_ragged, combine_ragged, 128)
