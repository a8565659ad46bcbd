// From a pair's accumulators to 16-bit rows.
#pragma once
#include "config.h"

namespace flashmla::pair {

// Four lanes with words v[0..3] each; afterwards lane i of them has word i of all four, in lane order.
__device__ __forceinline__ void transpose_quad(uint32_t (&v)[4], int lane) {
  const bool odd = lane & 1, high = lane & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? v[i] : v[i + 1], 1);
    (odd ? v[i] : v[i + 1]) = got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, high ? v[i] : v[i + 2], 2);
    (high ? v[i] : v[i + 2]) = got;
  }
}

// This warpgroup's 256 columns of the two rows r = 0, 1 of each lane, times their factors.
__device__ __forceinline__ void store_rows(uint16_t* (&base)[2], const bool (&live)[2], const float (&factor)[2], bool bf16,
                                           const float (&o)[128], int lane) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int j = 0; j < 32; j += 4) {
      uint32_t v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float lo = o[(j + i) * 4 + r * 2] * factor[r], hi = o[(j + i) * 4 + r * 2 + 1] * factor[r];
        v[i] = bf16 ? Bf16::pack(lo, hi) : F16::pack(lo, hi);
      }
      transpose_quad(v, lane);
      if (live[r]) *reinterpret_cast<uint4*>(base[r] + j * 8 + (lane & 3) * 8) = make_uint4(v[0], v[1], v[2], v[3]);
    }
  }
}

}  // namespace flashmla::pair
