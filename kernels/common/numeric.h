// Element types of queries and cache, and the arithmetic that the attention kernels share.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "../include/flashmla_params.h"

namespace flashmla {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

#ifndef FLASHMLA_ON_HOST  // there test/block.h has these three
struct Bf16 {
  static __device__ __forceinline__ uint32_t pack(float lo, float hi) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
  }
};

struct F16 {
  static __device__ __forceinline__ uint32_t pack(float lo, float hi) {
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
  }
};

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

// Of sums of 2^(x - maximum): what to subtract where the maximum is minus infinity too, and a division that gives 0 for nothing.
__device__ __forceinline__ float base_of(float maximum) { return maximum == -INFINITY ? 0.f : maximum; }
// The natural log-sum-exp of a row, from a maximum in base 2 and the sum of what is relative to it.
__device__ __forceinline__ float natural_lse(float most, float total) { return total > 0.f ? (most + __log2f(total)) * kLn2 : -INFINITY; }
__device__ __forceinline__ float inverse(float total) { return total > 0.f ? __fdividef(1.f, total) : 0.f; }

__device__ __forceinline__ void store_pair(void* base, int64_t index, int32_t dtype, float lo, float hi) {
  if (dtype == FLASHMLA_F32) {
    *reinterpret_cast<float2*>(static_cast<float*>(base) + index) = make_float2(lo, hi);
  } else {
    const uint32_t packed = dtype == FLASHMLA_BF16 ? Bf16::pack(lo, hi) : F16::pack(lo, hi);
    *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(base) + index) = packed;
  }
}

__device__ __forceinline__ void store_four(void* base, int64_t index, int32_t dtype, float a, float b, float c, float d) {
  if (dtype == FLASHMLA_F32) {
    *reinterpret_cast<float4*>(static_cast<float*>(base) + index) = make_float4(a, b, c, d);
  } else {
    const bool bf16 = dtype == FLASHMLA_BF16;
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(base) + index) =
        make_uint2(bf16 ? Bf16::pack(a, b) : F16::pack(a, b), bf16 ? Bf16::pack(c, d) : F16::pack(c, d));
  }
}

}  // namespace flashmla
