// Operations that go over rows or elements: take rows, norm, copy columns, rotary, add, silu, convert. All limited by memory.
//
// Threads walk in grid-stride loops of 64-bit indices, so that a grid serves any size.
#pragma once
#include "bits.h"
#include "reduce.h"

namespace flashmla {

__device__ __forceinline__ int64_t first_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t index_stride() { return int64_t(gridDim.x) * blockDim.x; }

// A block a row and 1024 columns.
__device__ __forceinline__ void take_rows(const MlaTakeRowsParams& p) {
  const int64_t row = blockIdx.x, id = p.ids[row];
  const bool exists = id >= 0 && id < p.rows;
  for (int64_t c = int64_t(blockIdx.y) * blockDim.x + threadIdx.x; c < p.d; c += int64_t(gridDim.y) * blockDim.x) {
    const int64_t at = id * p.d + c;
    float v = nan_value();
    if (exists) v = p.table_dtype == FLASHMLA_VALUE_BF16 ? bf16_value(static_cast<const uint16_t*>(p.table)[at]) : static_cast<const float*>(p.table)[at];
    p.out[row * p.d + c] = v;
  }
}

// out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight. Each thread rewrites only what it has read, so out may be x.
__device__ __forceinline__ void rms_norm(const MlaNormParams& p) {
  __shared__ float sums[32];
  const float* x = p.x + blockIdx.x * p.d;
  float* out = p.out + blockIdx.x * p.d;
  float sum = 0.f;
  for (int64_t c = threadIdx.x; c < p.d; c += blockDim.x) sum = fmaf(x[c], x[c], sum);
  const float inverse = 1.f / sqrtf(block_sum(sum, sums) / float(p.d) + p.eps);
  for (int64_t c = threadIdx.x; c < p.d; c += blockDim.x) out[c] = x[c] * inverse * p.weight[c];
}

__device__ __forceinline__ void copy_columns(const MlaColumnsParams& p) {
  for (int64_t at = first_index(); at < p.rows * p.width; at += index_stride()) {
    const int64_t row = at / p.width, c = at - row * p.width;
    p.out[row * p.out_stride + c] = p.x[row * p.x_stride + c];
  }
}

__device__ __forceinline__ void rotary(const MlaRotaryParams& p) {
  for (int64_t at = first_index(); at < p.rows * p.pairs; at += index_stride()) {
    const int64_t row = at / p.pairs;
    const int j = int(at - row * p.pairs);
    const int64_t position = p.positions[row / p.rows_per_position];
    float cos = nan_value(), sin = nan_value();
    if (position >= 0 && position < p.max_positions) {
      cos = p.table[(position * p.pairs + j) * 2];
      sin = p.table[(position * p.pairs + j) * 2 + 1];
    }
    float* a = p.x + row * p.stride + (p.interleaved ? 2 * j : j);
    float* b = p.x + row * p.stride + (p.interleaved ? 2 * j + 1 : j + p.pairs);
    const float u = *a, v = *b;
    *a = u * cos - v * sin;
    *b = v * cos + u * sin;
  }
}

__device__ __forceinline__ void add(const MlaElementsParams& p) {
  for (int64_t at = first_index(); at < p.n; at += index_stride()) p.out[at] += p.a[at];
}

// x / (1 + e^-x); e^-x overflows to infinity below -88, which gives -0.
__device__ __forceinline__ float silu(float x) { return x / (1.f + expf(-x)); }

__device__ __forceinline__ void silu_mul(const MlaElementsParams& p) {
  for (int64_t at = first_index(); at < p.n; at += index_stride()) p.out[at] = silu(p.a[at]) * p.b[at];
}

__device__ __forceinline__ void convert(const MlaConvertParams& p) {
  for (int64_t at = first_index(); at < p.n; at += index_stride()) {
    float v;
    if (p.source_dtype == FLASHMLA_VALUE_F32) v = static_cast<const float*>(p.source)[at];
    else if (p.source_dtype == FLASHMLA_VALUE_BF16) v = bf16_value(static_cast<const uint16_t*>(p.source)[at]);
    else v = half_value(static_cast<const uint16_t*>(p.source)[at]);
    if (p.target_dtype == FLASHMLA_VALUE_F32) static_cast<float*>(p.target)[at] = v;
    else static_cast<uint16_t*>(p.target)[at] = uint16_t(bf16_bits(v));
  }
}

}  // namespace flashmla
