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
  if constexpr (R == 1 && C == 1) dot_each<1>({p.weight}, p.weight_dtype, at, x, p.i, p.vector != 0, sums[0]);
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

// Eight outputs of one row, those of block `block`: a warp each.
__device__ __forceinline__ void row_outputs(const MlaLinearRowsParams& p, const void* weight, const void* up, int dtype, float* out, int64_t o,
                                            int64_t block) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int64_t j = block * 8 + warp, at = j * p.i;
  if (j >= o) return;
  if (up == nullptr) {
    float sums[1] = {};
    dot_each<1>({weight}, dtype, at, p.x, p.i, p.vector != 0, sums);
    const float sum = warp_sum(sums[0]);
    if (lane == 0) put(out + j, sum, p.add != 0);
  } else {
    float sums[2] = {};
    dot_each<2>({weight, up}, dtype, at, p.x, p.i, p.vector != 0, sums);
    const float gate = warp_sum(sums[0]), other = warp_sum(sums[1]);
    if (lane == 0) out[j] = silu(gate) * other;
  }
}

// One row. Grid (blocks of both products), 256 threads.
__device__ __forceinline__ void linear_row(const MlaLinearRowsParams& p) {
  const int block = int(blockIdx.x);
  if (block < p.blocks) row_outputs(p, p.weight, p.up, p.weight_dtype, p.out, p.o, block);
  else row_outputs(p, p.other_weight, p.other_up, p.other_dtype, p.other_out, p.other_o, block - p.blocks);
}

}  // namespace flashmla
