// Products of a weight row with a few rows of x by one warp: limited by reading the weights, once, 16 bytes a load.
#pragma once
#include "bits.h"
#include "reduce.h"

namespace flashmla {

// The eight bf16 values of 16 bytes.
__device__ __forceinline__ void unpack(const uint4& packed, float (&w)[8]) {
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    w[2 * k] = __uint_as_float(words[k] << 16);
    w[2 * k + 1] = __uint_as_float(words[k] & 0xffff0000u);
  }
}

// Eight consecutive values of a weight row.
__device__ __forceinline__ void load_eight(const void* weight, int dtype, int64_t at, float (&w)[8]) {
  if (dtype == FLASHMLA_VALUE_BF16) {
    unpack(__ldg(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(weight) + at)), w);
  } else {
    const float4* source = reinterpret_cast<const float4*>(static_cast<const float*>(weight) + at);
    const float4 a = __ldg(source), b = __ldg(source + 1);
    w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w, w[4] = b.x, w[5] = b.y, w[6] = b.z, w[7] = b.w;
  }
}

__device__ __forceinline__ float load_one(const void* weight, int dtype, int64_t at) {
  return dtype == FLASHMLA_VALUE_BF16 ? bf16_value(static_cast<const uint16_t*>(weight)[at]) : static_cast<const float*>(weight)[at];
}

// sums[c][r] = the lane's part of Σ_k weight[at + c * step + k] * x[r * x_stride + k] over k < i. With `vector` all rows start at
// multiples of 16 bytes.
template <int R, int C>
__device__ __forceinline__ void dot_rows(const void* weight, int dtype, int64_t at, int64_t step, const float* x, int64_t x_stride, int rows,
                                         int64_t i, bool vector, float (&sums)[C][R]) {
  const int lane = threadIdx.x & 31;
  const int64_t whole = vector ? i & ~int64_t(7) : 0;
#pragma unroll 2
  for (int64_t k = lane * 8; k < whole; k += 256) {
    float w[C][8];
#pragma unroll
    for (int c = 0; c < C; ++c) load_eight(weight, dtype, at + c * step + k, w[c]);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (r >= rows) break;
      const float4* source = reinterpret_cast<const float4*>(x + r * x_stride + k);
      const float4 a = source[0], b = source[1];
      const float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
      for (int c = 0; c < C; ++c) {
#pragma unroll
        for (int e = 0; e < 8; ++e) sums[c][r] = fmaf(w[c][e], v[e], sums[c][r]);
      }
    }
  }
  for (int64_t k = whole + lane; k < i; k += 32) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const float w = load_one(weight, dtype, at + c * step + k);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (r < rows) sums[c][r] = fmaf(w, x[r * x_stride + k], sums[c][r]);
      }
    }
  }
}

// A lane's part of one row of x with each of N rows of bf16 weights, all of which start at multiples of 16 bytes: kAhead loads of each are under way at
// once.
template <int N, int kAhead>
__device__ __forceinline__ void dot_halves(const uint16_t* const (&weights)[N], const float* x, int64_t i, float (&sums)[N]) {
  for (int64_t first = (threadIdx.x & 31) * 8; first < i; first += kAhead * 256) {
    uint4 packed[kAhead][N];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int64_t k = first + j * 256;
#pragma unroll
      for (int n = 0; n < N; ++n) packed[j][n] = k < i ? __ldg(reinterpret_cast<const uint4*>(weights[n] + k)) : make_uint4(0u, 0u, 0u, 0u);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int64_t k = first + j * 256;
      if (k >= i) break;
      const float4* source = reinterpret_cast<const float4*>(x + k);
      const float4 low = source[0], high = source[1];
      const float v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int n = 0; n < N; ++n) {
        float w[8];
        unpack(packed[j][n], w);
#pragma unroll
        for (int e = 0; e < 8; ++e) sums[n] = fmaf(w[e], v[e], sums[n]);
      }
    }
  }
}

// A lane's part of one row of x with a row of each of N weights of one type, all from element `at` on.
template <int N>
__device__ __forceinline__ void dot_each(const void* const (&weights)[N], int dtype, int64_t at, const float* x, int64_t i, bool vector, float (&sums)[N]) {
  if (vector && dtype == FLASHMLA_VALUE_BF16) {
    const uint16_t* halves[N];
#pragma unroll
    for (int n = 0; n < N; ++n) halves[n] = static_cast<const uint16_t*>(weights[n]) + at;
    dot_halves<N, 4>(halves, x, i, sums);
    return;
  }
#pragma unroll
  for (int n = 0; n < N; ++n) {
    float sum[1][1] = {};
    dot_rows<1, 1>(weights[n], dtype, at, 0, x, 0, 1, i, vector, sum);
    sums[n] = sum[0][0];
  }
}

}  // namespace flashmla
