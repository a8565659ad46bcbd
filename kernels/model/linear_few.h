// A product of few rows: each warp takes C outputs of a head and R rows of x, so that a weight is read once for R rows.
#pragma once
#include "dot.h"
#include "rows.h"
#include "tile_product.h"

namespace flashmla {

// Grid (ceil(o / (8 C)), ceil(n / R), heads), 256 threads.
template <int R, int C>
__device__ __forceinline__ void linear_few(const MlaLinearParams& p) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, head = blockIdx.z;
  const int64_t j = (int64_t(blockIdx.x) * 8 + warp) * C, first = int64_t(blockIdx.y) * R;
  if (j >= p.o) return;
  const int rows = int(min(int64_t(R), p.n - first));
  const float* x = p.x + first * p.x_stride + head * p.x_head_stride;
  const int64_t at = (head * p.o + j) * p.i;
  // The last warp of a head with a remainder reads its last row twice and writes it once.
  const int columns = int(min(int64_t(C), p.o - j));
  float sums[C][R] = {};
  if constexpr (R == 1 && C == 1) dot_each<1, 1>({p.weight}, p.weight_dtype, {at}, x, 0, 1, p.i, p.vector != 0, sums);
  else dot_rows<R, C>(p.weight, p.weight_dtype, at, columns == C ? p.i : 0, x, p.x_stride, rows, p.i, p.vector != 0, sums);
#pragma unroll
  for (int c = 0; c < C; ++c) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const float sum = warp_sum(sums[c][r]);
      if (lane == 0 && r < rows && c < columns) put(p.out + (first + r) * p.out_stride + head * p.out_head_stride + j + c, sum, p.add != 0);
    }
  }
}

// R rows' outputs of one product, those of block `block`: a warp has one or two of each row, or one of a gated product.
template <int R>
__device__ __forceinline__ void rows_outputs(const MlaLinearRowsParams& p, const void* weight, const void* up, int dtype, float* out, int64_t o,
                                             int64_t block) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int64_t first = int64_t(blockIdx.y) * R;
  const int rows = R == 1 ? 1 : int(min(int64_t(R), p.n - first));
  const float* x = p.x + first * p.i;
  if (R == 1 && up == nullptr) {
    const int64_t j = block * 8 + warp;
    if (j >= o) return;
    float sums[1][1] = {};
    dot_each<1, 1>({weight}, dtype, {j * p.i}, x, p.i, 1, p.i, p.vector != 0, sums);
    const float sum = warp_sum(sums[0][0]);
    if (lane == 0) put(out + first * o + j, sum, p.add != 0);
    return;
  }
  const bool gated = up != nullptr;
  const int64_t j = (block * 8 + warp) * (gated ? 1 : 2), next = gated ? j : j + 1;
  if (j >= o) return;
  float sums[2][R] = {};
  dot_each<R, 2>({weight, gated ? up : weight}, dtype, {j * p.i, min(next, o - 1) * p.i}, x, p.i, rows, p.i, p.vector != 0, sums);
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const float a = warp_sum(sums[0][r]), b = warp_sum(sums[1][r]);
    if (lane != r || r >= rows) continue;
    float* row = out + (first + r) * o;
    if (gated) {
      row[j] = silu(a) * b;
    } else {
      put(row + j, a, p.add != 0);
      if (next < o) put(row + next, b, p.add != 0);
    }
  }
}

// Grid (blocks of both products, ceil(n / R)), 256 threads.
template <int R>
__device__ __forceinline__ void linear_rows(const MlaLinearRowsParams& p) {
  const int block = int(blockIdx.x);
  if (block < p.blocks) rows_outputs<R>(p, p.weight, p.up, p.weight_dtype, p.out, p.o, block);
  else rows_outputs<R>(p, p.other_weight, p.other_up, p.other_dtype, p.other_out, p.other_o, block - p.blocks);
}

}  // namespace flashmla
