// A product of some rows with bf16 weights on the tensor cores: limited by reading the weights, once for 16 M rows.
//
// 1. A block of 8 warps takes 8 N rows of weights; each warp takes every eighth 32 columns of them.
// 2. A lane reads 16 bytes of a weight row and the same eight columns of x: which columns a lane brings to a product does not matter
//    as long as both sides agree, so no shared memory is needed. x is split into three bf16 parts in registers.
// 3. The weights and x of the next two steps are under way while these are multiplied. The warps' sums meet in shared memory, in their order.
#pragma once
#include "dot.h"
#include "mma.h"
#include "rows.h"
#include "split.h"
#include "tile_product.h"

namespace flashmla {

template <int M, int N>
using MmaSums = float[8][16 * M][8 * N + 1];

// The warps' sums of 16 M rows of x with 8 N rows of weights, of which this lane reads weights[n], null: zeros. i is a multiple of 32, and all rows start at
// multiples of 16 bytes.
template <int M, int N>
__device__ __forceinline__ void multiply_rows(const uint16_t* const (&weights)[N], const float* x, int64_t x_stride, int64_t rows, int64_t i,
                                              MmaSums<M, N>& sums) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  struct Step {
    uint4 w[N];
    float4 x[M][2][2];  // rows g and g + 8 of 16, four columns each
  };
  const auto load = [&](Step& step, int64_t k) {
    k += 8 * t;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      step.w[n] = weights[n] != nullptr && k < i ? __ldg(reinterpret_cast<const uint4*>(weights[n] + k)) : make_uint4(0u, 0u, 0u, 0u);
    }
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int64_t row = m * 16 + r * 8 + g;
        const bool there = row < rows && k < i;
        const float4* source = reinterpret_cast<const float4*>(x + row * x_stride + k);
        step.x[m][r][0] = there ? source[0] : make_float4(0.f, 0.f, 0.f, 0.f);
        step.x[m][r][1] = there ? source[1] : make_float4(0.f, 0.f, 0.f, 0.f);
      }
    }
  };
  float acc[M][N][4] = {};
  const auto multiply = [&](const Step& step) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
      uint32_t parts[2][4][3];  // rows g and g + 8, pairs of columns, parts
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float4 a = step.x[m][r][0], b = step.x[m][r][1];
        split_pair(a.x, a.y, parts[r][0]);
        split_pair(a.z, a.w, parts[r][1]);
        split_pair(b.x, b.y, parts[r][2]);
        split_pair(b.z, b.w, parts[r][3]);
      }
#pragma unroll
      for (int part = 2; part >= 0; --part) {  // the smallest first
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t a[4] = {parts[0][2 * half][part], parts[1][2 * half][part], parts[0][2 * half + 1][part], parts[1][2 * half + 1][part]};
#pragma unroll
          for (int n = 0; n < N; ++n) {
            const uint32_t b[2] = {half == 0 ? step.w[n].x : step.w[n].z, half == 0 ? step.w[n].y : step.w[n].w};
            mma_bf16(acc[m][n], a, b);
          }
        }
      }
    }
  };
  constexpr int kAcross = 8 * 32;  // columns of all warps' steps
  Step even, odd;
  load(even, warp * 32);
  load(odd, warp * 32 + kAcross);
  for (int64_t k = warp * 32; k < i; k += 2 * kAcross) {
    multiply(even);
    load(even, k + 2 * kAcross);
    multiply(odd);
    load(odd, k + 3 * kAcross);
  }
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[warp][m * 16 + g + (e >> 1) * 8][n * 8 + t * 2 + (e & 1)] = acc[m][n][e];
    }
  }
  __syncthreads();
}

template <int M, int N>
__device__ __forceinline__ float sum_of_warps(const MmaSums<M, N>& sums, int r, int c) {
  float sum = 0.f;
#pragma unroll
  for (int w = 0; w < 8; ++w) sum += sums[w][r][c];
  return sum;
}

// Grid (ceil(o / (8 N)), ceil(n / (16 M)), heads), 256 threads.
template <int M, int N>
__device__ __forceinline__ void linear_mma(const MlaLinearParams& p) {
  __shared__ MmaSums<M, N> sums;
  const int64_t head = blockIdx.z, first = int64_t(blockIdx.y) * 16 * M, column = int64_t(blockIdx.x) * 8 * N;
  const uint16_t* rows[N];
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int64_t j = column + n * 8 + (threadIdx.x & 31) / 4;
    rows[n] = j < p.o ? static_cast<const uint16_t*>(p.weight) + (head * p.o + j) * p.i : nullptr;
  }
  multiply_rows<M, N>(rows, p.x + first * p.x_stride + head * p.x_head_stride, p.x_stride, p.n - first, p.i, sums);
  for (int at = threadIdx.x; at < 16 * M * 8 * N; at += 256) {
    const int r = at / (8 * N), c = at % (8 * N);
    if (first + r >= p.n || column + c >= p.o) continue;
    put(p.out + (first + r) * p.out_stride + head * p.out_head_stride + column + c, sum_of_warps<M, N>(sums, r, c), p.add != 0);
  }
}

// Up to 16 rows by block `block` of one product: 16 outputs, or 8 of a gated one.
__device__ __forceinline__ void mma_outputs(const MlaLinearRowsParams& p, const void* weight, const void* up, float* out, int64_t o, int64_t block,
                                            MmaSums<1, 2>& sums) {
  const bool gated = up != nullptr;
  const int64_t first = int64_t(blockIdx.y) * 16, column = block * (gated ? 8 : 16);
  const uint16_t* rows[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int64_t j = column + (gated ? 0 : n * 8) + (threadIdx.x & 31) / 4;
    rows[n] = j < o ? static_cast<const uint16_t*>(gated && n == 1 ? up : weight) + j * p.i : nullptr;
  }
  multiply_rows<1, 2>(rows, p.x + first * p.i, p.i, p.n - first, p.i, sums);
  const int r = threadIdx.x / 16, c = threadIdx.x % 16;
  if (first + r >= p.n || column + c >= o || (gated && c >= 8)) return;
  float* target = out + (first + r) * o + column + c;
  const float sum = sum_of_warps<1, 2>(sums, r, c);
  if (gated) *target = silu(sum) * sum_of_warps<1, 2>(sums, r, c + 8);
  else put(target, sum, p.add != 0);
}

// Grid (blocks of both products, ceil(n / 16)), 256 threads. bf16 weights.
__device__ __forceinline__ void linear_rows_mma(const MlaLinearRowsParams& p) {
  __shared__ MmaSums<1, 2> sums;
  const int block = int(blockIdx.x);
  if (block < p.blocks) mma_outputs(p, p.weight, p.up, p.out, p.o, block, sums);
  else mma_outputs(p, p.other_weight, p.other_up, p.other_out, p.other_o, block - p.blocks, sums);
}

}  // namespace flashmla
