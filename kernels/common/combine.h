// Merges the partial results of split row tiles: out = sum_i 2^(lse_i - lse) out_i, lse = log2 sum_i 2^lse_i.
//
// 1. A block of 512 threads takes four rows of one split tile group, 128 threads and four columns each a row, then the next rows.
// 2. blockIdx.x names the group's entry in p.splits; there is one for each tile group, or one for each worker, whichever is less.
//    Most entries have nothing to merge when sequences are many, and starting a block for nothing costs: they are few.
// 3. When that is little work (gridDim.z = 2: one row and half of the columns a block), eight groups of 64 threads share the parts.
// 4. Parts are summed in worker order: results do not depend on timing.
#pragma once
#include "numeric.h"
#include "schedule.h"

namespace flashmla {

constexpr int kCombineRows = 4;

// Row `row` of a split tile group.
__device__ __forceinline__ void combine_row(const MlaDecodeParams& p, const MlaSplit& split, int row, bool narrow,
                                            float4* shared_acc, float* shared_total) {
  const int sub = threadIdx.x / (narrow ? 64 : 128);
  const int lane = narrow ? threadIdx.x % 64 + blockIdx.z * 64 : threadIdx.x % 128;  // which four columns
  const int member = row / p.tile_rows, tile_row = row % p.tile_rows;
  const int splits = split.splits;

  auto slot_row = [&](int i) {
    const int64_t worker = int64_t(split.first_worker + i) * p.tiles_per_group + member;
    return partial_slot(worker, i == 0) * p.tile_rows + tile_row;
  };
  // Every thread of a row reads the row's few log-sum-exps itself (one cache line each), in the same order.
  float max_lse = -INFINITY;
  for (int i = lane & 31; i < splits; i += 32) max_lse = fmaxf(max_lse, p.partial_lse[slot_row(i)]);
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) max_lse = fmaxf(max_lse, __shfl_xor_sync(0xffffffffu, max_lse, d));
  const int64_t out_row = split.out_row + row;
  if (max_lse == -INFINITY) {
    store_pair(p.out, out_row * 512 + lane * 4, p.out_dtype, 0.f, 0.f);
    store_pair(p.out, out_row * 512 + lane * 4 + 2, p.out_dtype, 0.f, 0.f);
    if (lane == 0) p.lse[out_row] = -INFINITY;
    return;
  }
  float4 acc = make_float4(0.f, 0.f, 0.f, 0.f);
  float total = 0.f;
  constexpr int kBatch = 8;
  // The few parts of most tiles are not worth a full batch.
  const int step = narrow ? 8 : 1, start = narrow ? sub : 0;
  int base = start;
  if (splits <= 4 * step) {
    for (; base < splits; base += step) {
      const int64_t r = slot_row(base);
      const float4 part = __ldcs(reinterpret_cast<const float4*>(p.partial_out + r * 512) + lane);
      const float w = exp2f(p.partial_lse[r] - max_lse);
      total += w;
      acc.x += w * part.x;
      acc.y += w * part.y;
      acc.z += w * part.z;
      acc.w += w * part.w;
    }
  }
  for (; base < splits; base += kBatch * step) {
    float4 part[kBatch];
    float weight[kBatch];
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const int i = min(base + u * step, splits - 1);
      const int64_t r = slot_row(i);
      part[u] = __ldcs(reinterpret_cast<const float4*>(p.partial_out + r * 512) + lane);
      weight[u] = base + u * step < splits ? p.partial_lse[r] : -INFINITY;
    }
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const float w = exp2f(weight[u] - max_lse);
      total += w;
      acc.x += w * part[u].x;
      acc.y += w * part[u].y;
      acc.z += w * part[u].z;
      acc.w += w * part[u].w;
    }
  }
  if (narrow) {
    shared_acc[threadIdx.x] = acc;
    if (threadIdx.x % 64 == 0) shared_total[sub] = total;
    __syncthreads();
    if (sub != 0) return;
#pragma unroll
    for (int i = 1; i < 8; ++i) {
      const float4 part = shared_acc[threadIdx.x + i * 64];
      total += shared_total[i];
      acc.x += part.x;
      acc.y += part.y;
      acc.z += part.z;
      acc.w += part.w;
    }
  }
  const float inv = 1.f / total;
  store_pair(p.out, out_row * 512 + lane * 4, p.out_dtype, acc.x * inv, acc.y * inv);
  store_pair(p.out, out_row * 512 + lane * 4 + 2, p.out_dtype, acc.z * inv, acc.w * inv);
  if (lane == 0) p.lse[out_row] = (max_lse + log2f(total)) * kLn2;
}

__device__ __forceinline__ void combine(const MlaDecodeParams& p) {
  __shared__ float4 shared_acc[512];
  __shared__ float shared_total[8];
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  const MlaSplit split = p.splits[blockIdx.x];
  if (split.splits < 2) return;
  if (gridDim.z == 2) {
    if (int(blockIdx.y) < split.rows) combine_row(p, split, blockIdx.y, true, shared_acc, shared_total);
    return;
  }
#pragma unroll 1
  for (int row = blockIdx.y * kCombineRows + threadIdx.x / 128; row < split.rows; row += gridDim.y * kCombineRows) {
    combine_row(p, split, row, false, shared_acc, shared_total);
  }
}

}  // namespace flashmla
