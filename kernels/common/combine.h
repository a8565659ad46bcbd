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

// Columns 4 * lane to 4 * lane + 3 of a part's row. Read once.
__device__ __forceinline__ float4 load_part(const void* rows, bool halves, int64_t row, int lane) {
  const int64_t index = row * 128 + lane;
  if (!halves) return __ldcs(static_cast<const float4*>(rows) + index);
  const uint2 raw = __ldcs(static_cast<const uint2*>(rows) + index);
  const float2 lo = __half22float2(*reinterpret_cast<const __half2*>(&raw.x)), hi = __half22float2(*reinterpret_cast<const __half2*>(&raw.y));
  return make_float4(lo.x, lo.y, hi.x, hi.y);
}

// Row `row` of a split tile group. It runs once, when everybody waits for it: little code, and all loads on their way together.
template <bool kHalves>
__device__ __forceinline__ void combine_row(const MlaDecodeParams& p, const MlaSplit& split, int row, bool narrow,
                                            float4* shared_acc, float* shared_total) {
  constexpr int kBatch = 8;
  const int sub = narrow ? threadIdx.x / 64 : 0, step = narrow ? 8 : 1;
  const int lane = narrow ? threadIdx.x % 64 + blockIdx.z * 64 : threadIdx.x % 128;  // which four columns
  const int member = unsigned(row) / unsigned(p.tile_rows), tile_row = row - member * p.tile_rows;
  const int splits = split.splits;

  auto slot_row = [&](int i) {
    return partial_slot((split.first_worker + i) * p.tiles_per_group + member, i == 0) * p.tile_rows + tile_row;
  };
  float4 part[kBatch];
  auto fetch = [&](int base) {
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const int i = base + u * step;
      part[u] = make_float4(0.f, 0.f, 0.f, 0.f);
      if (i < splits) part[u] = load_part(p.partial_out, kHalves, slot_row(i), lane);
    }
  };
  fetch(sub);
  // Every warp of a row reads the row's few log-sum-exps itself (one cache line each), in the same order.
  float max_lse = -INFINITY;
  for (int i = lane & 31; i < splits; i += 32) max_lse = fmaxf(max_lse, p.partial_lse[slot_row(i)].x);
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) max_lse = fmaxf(max_lse, __shfl_xor_sync(0xffffffffu, max_lse, d));
  const float base_lse = max_lse == -INFINITY ? 0.f : max_lse;  // no part saw a token: zeros, and -inf as the log
  float4 acc = make_float4(0.f, 0.f, 0.f, 0.f);
  float total = 0.f;
  for (int base = sub;;) {
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const int i = base + u * step;
      if (i >= splits) continue;
      const float2 lse_and_factor = p.partial_lse[slot_row(i)];
      const float w = exp2_approx(lse_and_factor.x - base_lse), scaled = w * lse_and_factor.y;
      total += w;
      acc.x += scaled * part[u].x;
      acc.y += scaled * part[u].y;
      acc.z += scaled * part[u].z;
      acc.w += scaled * part[u].w;
    }
    base += kBatch * step;
    if (base >= splits) break;
    fetch(base);
  }
  if (narrow) {
    shared_acc[threadIdx.x] = acc;
    if (threadIdx.x % 64 == 0) shared_total[sub] = total;
    __syncthreads();
    if (sub != 0) return;
#pragma unroll
    for (int i = 1; i < 8; ++i) {
      const float4 other = shared_acc[threadIdx.x + i * 64];
      total += shared_total[i];
      acc.x += other.x;
      acc.y += other.y;
      acc.z += other.z;
      acc.w += other.w;
    }
  }
  const int64_t out_row = split.out_row + row;
  const float inv = total > 0.f ? __fdividef(1.f, total) : 0.f;
  store_pair(p.out, out_row * 512 + lane * 4, p.out_dtype, acc.x * inv, acc.y * inv);
  store_pair(p.out, out_row * 512 + lane * 4 + 2, p.out_dtype, acc.z * inv, acc.w * inv);
  if (lane == 0) p.lse[out_row] = (max_lse + __log2f(total)) * kLn2;
}

template <bool kHalves>
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
    if (int(blockIdx.y) >= split.rows) return;
    combine_row<kHalves>(p, split, blockIdx.y, true, shared_acc, shared_total);
    return;
  }
#pragma unroll 1
  for (int row = blockIdx.y * kCombineRows + threadIdx.x / 128; row < split.rows; row += gridDim.y * kCombineRows) {
    combine_row<kHalves>(p, split, row, false, shared_acc, shared_total);
  }
}

}  // namespace flashmla
