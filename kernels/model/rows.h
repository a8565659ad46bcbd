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

constexpr int kNormFours = 8;  // float4 values of a row that a thread of 256 keeps

// out = x / sqrt(mean(x^2) + eps) * weight of one row, by a block. Each thread rewrites only what it has read, so out may be x. `sums` has 32 floats.
__device__ __forceinline__ void norm_row(const float* x, const float* weight, float* out, int64_t d, float eps, float* sums) {
  float sum = 0.f;
  const uint64_t places = reinterpret_cast<uint64_t>(x) | reinterpret_cast<uint64_t>(weight) | reinterpret_cast<uint64_t>(out);
  const int fours = int(d / 4);
  if (d % 4 == 0 && places % 16 == 0 && d <= 4 * kNormFours * int(blockDim.x)) {
    float4 values[kNormFours], gains[kNormFours];
#pragma unroll
    for (int j = 0; j < kNormFours; ++j) {
      const int at = threadIdx.x + j * blockDim.x;
      if (at >= fours) break;
      values[j] = reinterpret_cast<const float4*>(x)[at];
      gains[j] = __ldg(reinterpret_cast<const float4*>(weight) + at);
    }
#pragma unroll
    for (int j = 0; j < kNormFours; ++j) {
      if (threadIdx.x + j * blockDim.x >= fours) break;
      const float4 v = values[j];
      sum = fmaf(v.x, v.x, fmaf(v.y, v.y, fmaf(v.z, v.z, fmaf(v.w, v.w, sum))));
    }
    const float inverse = 1.f / sqrtf(block_sum(sum, sums) / float(d) + eps);
#pragma unroll
    for (int j = 0; j < kNormFours; ++j) {
      const int at = threadIdx.x + j * blockDim.x;
      if (at >= fours) break;
      const float4 v = values[j], g = gains[j];
      reinterpret_cast<float4*>(out)[at] = make_float4(v.x * inverse * g.x, v.y * inverse * g.y, v.z * inverse * g.z, v.w * inverse * g.w);
    }
    return;
  }
  for (int64_t c = threadIdx.x; c < d; c += blockDim.x) sum = fmaf(x[c], x[c], sum);
  const float inverse = 1.f / sqrtf(block_sum(sum, sums) / float(d) + eps);
  for (int64_t c = threadIdx.x; c < d; c += blockDim.x) out[c] = x[c] * inverse * weight[c];
}

// A block a row.
__device__ __forceinline__ void rms_norm(const MlaNormParams& p) {
  __shared__ float sums[32];
  norm_row(p.x + blockIdx.x * p.d, p.weight, p.out + blockIdx.x * p.d, p.d, p.eps, sums);
}

__device__ __forceinline__ void copy_columns(const MlaColumnsParams& p) {
  for (int64_t at = first_index(); at < p.rows * p.width; at += index_stride()) {
    const int64_t row = at / p.width, c = at - row * p.width;
    p.out[row * p.out_stride + c] = p.x[row * p.x_stride + c];
  }
}

// Turns pair j of a row by the angles of a position, from x to out; a position past the table gives NaN.
__device__ __forceinline__ void turn(const float* x, float* out, const float* table, int64_t position, int64_t max_positions, int j, int pairs,
                                     bool interleaved) {
  float cos = nan_value(), sin = nan_value();
  if (position >= 0 && position < max_positions) {
    const float* angles = table + (position * pairs + j) * 2;
    cos = angles[0];
    sin = angles[1];
  }
  const int first = interleaved ? 2 * j : j, second = interleaved ? 2 * j + 1 : j + pairs;
  const float u = x[first], v = x[second];
  out[first] = u * cos - v * sin;
  out[second] = v * cos + u * sin;
}

__device__ __forceinline__ void rotary(const MlaRotaryParams& p) {
  for (int64_t at = first_index(); at < p.rows * p.pairs; at += index_stride()) {
    const int64_t row = at / p.pairs;
    const int j = int(at - row * p.pairs);
    turn(p.x + row * p.stride, p.out + row * p.out_stride, p.table, p.positions[row / p.rows_per_position], p.max_positions, j, p.pairs,
         p.interleaved != 0);
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
