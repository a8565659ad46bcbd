#include "kernel.h"

using namespace flashmla;

#define MLA_DECODE(name, type, Loader)                                                             \
  extern "C" __global__ void __launch_bounds__(decode::kThreads, 1)                                \
      name(const __grid_constant__ MlaDecodeParams p, const __grid_constant__ CUtensorMap q,       \
           const __grid_constant__ CUtensorMap kv) {                                               \
    extern __shared__ __align__(1024) uint8_t raw[];                                               \
    decode::decode<type, decode::Loader>(p, &q, &kv, *reinterpret_cast<decode::SharedStorage*>(raw)); \
  }

MLA_DECODE(mla_decode_bf16, Bf16, TmaLoader<false>)
#ifndef QUICK
MLA_DECODE(mla_decode_bf16_small, Bf16, TmaLoader<true>)
MLA_DECODE(mla_decode_f16, F16, TmaLoader<false>)
MLA_DECODE(mla_decode_f16_small, F16, TmaLoader<true>)
#endif
