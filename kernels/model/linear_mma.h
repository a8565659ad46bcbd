// A product of some rows with bf16 weights on the tensor cores: limited by reading the weights, once for 16 M rows.
//
// 1. A block of 8 warps takes 32 outputs; each warp takes every eighth 32 columns of the weights.
// 2. A lane reads 16 bytes of a weight row and the same eight columns of x: which columns a lane brings to a product does not matter
//    as long as both sides agree, so no shared memory is needed. x is split into three bf16 parts in registers.
// 3. The next weights are under way while these are multiplied. The warps' sums meet in shared memory, in their order.
#pragma once
#include "dot.h"
#include "mma.h"
#include "split.h"
#include "tile_product.h"

namespace flashmla {

constexpr int kMmaOutputs = 32;

// Grid (ceil(o / 32), ceil(n / (16 M)), heads), 256 threads. i is a multiple of 32, rows start at multiples of 16 bytes.
template <int M>
__device__ __forceinline__ void linear_mma(const MlaLinearParams& p) {
  __shared__ float sums[8][16 * M][kMmaOutputs + 1];
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31, g = lane >> 2, t = lane & 3;
  const int64_t head = blockIdx.z, first = int64_t(blockIdx.y) * 16 * M, column = int64_t(blockIdx.x) * kMmaOutputs;
  const uint16_t* weight = static_cast<const uint16_t*>(p.weight) + head * p.o * p.i + 8 * t;
  const float* x = p.x + head * p.x_head_stride + 8 * t;
  uint4 next[4];
  const auto load = [&](int64_t k) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int64_t j = column + n * 8 + g;
      next[n] = j < p.o && k < p.i ? __ldg(reinterpret_cast<const uint4*>(weight + j * p.i + k)) : make_uint4(0u, 0u, 0u, 0u);
    }
  };
  float acc[M][4][4] = {};
  load(warp * 32);
  for (int64_t k = warp * 32; k < p.i; k += 256) {
    uint4 w[4];
#pragma unroll
    for (int n = 0; n < 4; ++n) w[n] = next[n];
    load(k + 256);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      uint32_t parts[2][4][3];  // rows g and g + 8, pairs of columns, parts
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int64_t row = first + m * 16 + r * 8 + g;
        float4 a = make_float4(0.f, 0.f, 0.f, 0.f), b = a;
        if (row < p.n) {
          const float4* source = reinterpret_cast<const float4*>(x + row * p.x_stride + k);
          a = source[0];
          b = source[1];
        }
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
          for (int n = 0; n < 4; ++n) {
            const uint32_t b[2] = {half == 0 ? w[n].x : w[n].z, half == 0 ? w[n].y : w[n].w};
            mma_bf16(acc[m][n], a, b);
          }
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[warp][m * 16 + g + (e >> 1) * 8][n * 8 + t * 2 + (e & 1)] = acc[m][n][e];
    }
  }
  __syncthreads();
  for (int at = thread; at < 16 * M * kMmaOutputs; at += 256) {
    const int r = at / kMmaOutputs, c = at % kMmaOutputs;
    if (first + r >= p.n || column + c >= p.o) continue;
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < 8; ++w) sum += sums[w][r][c];
    put(p.out + (first + r) * p.out_stride + head * p.out_head_stride + column + c, sum, p.add != 0);
  }
}

}  // namespace flashmla
