#include "kernel.h"

using namespace flashmla;

#define MLA_DECODE_PAIR(name, type)                                                                                            \
  extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(pair::kThreads, 1)                                      \
      name(const __grid_constant__ MlaDecodeParams p, const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap kv, \
           const __grid_constant__ CUtensorMap kv_tile, const __grid_constant__ CUtensorMap q_tile) {                           \
    extern __shared__ uint8_t raw[];                                                                                            \
    pair::decode_pair<type>(p, &q, &q_tile, &kv, &kv_tile, raw);                                                                \
  }

MLA_DECODE_PAIR(mla_decode_bf16_pair, Bf16)
MLA_DECODE_PAIR(mla_decode_f16_pair, F16)
