// Merges the parts of split tiles that ./kernel.h has written: mla_combine for blocks that are small enough to stand beside decode blocks. They
// start with them, wait for their end, and let the decode after that start meanwhile.
//
// A block takes a row of a tile, or a slice of its columns where rows are few: the threads that a slice leaves over share the parts.
#pragma once
#include "../../common/combine.h"

namespace flashmla::decode_few {

constexpr int kCombineThreads = 128;

struct SliceSum {
  float4 o;
  float m, l;

  __device__ __forceinline__ void scale(float most) {
    const float factor = exp2_approx(m - base_of(most));
    m = most;
    l *= factor;
    o = make_float4(o.x * factor, o.y * factor, o.z * factor, o.w * factor);
  }
  __device__ __forceinline__ void add(float weight, const float4& v) {
    o.x += weight * v.x;
    o.y += weight * v.y;
    o.z += weight * v.z;
    o.w += weight * v.w;
  }
};

// Parts first, first + step, ... of a row; four columns a thread.
__device__ __forceinline__ SliceSum sum_parts(const MlaDecodeParams& p, const PartRows& part_row, int splits, int first, int step, int column) {
  constexpr int kBatch = 8;
  SliceSum sum = {make_float4(0.f, 0.f, 0.f, 0.f), -INFINITY, 0.f};
#pragma unroll 1
  for (int base = first; base < splits; base += kBatch * step) {
    float4 part[kBatch];
    float lse[kBatch];
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const int i = base + u * step, row = part_row(min(i, splits - 1));
      part[u] = load_part(p.partial_out, false, row, column);
      lse[u] = p.partial_lse[row].x;
      if (i >= splits) lse[u] = -INFINITY;
    }
    float most = sum.m;
#pragma unroll
    for (int u = 0; u < kBatch; ++u) most = fmaxf(most, lse[u]);
    sum.scale(most);
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const float weight = exp2_approx(lse[u] - base_of(most));
      sum.l += weight;
      sum.add(weight, part[u]);
    }
  }
  return sum;
}

__device__ __forceinline__ void combine(const MlaDecodeParams& p) {
  __shared__ SliceSum shared[kCombineThreads];
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
  const MlaSplit split = split_of(p, blockIdx.x);
  if (split.splits < 2) return;
  const int groups = gridDim.z, slice = unsigned(kCombineThreads) / unsigned(groups), thread = threadIdx.x;
  const int group = unsigned(thread) / unsigned(slice), column = blockIdx.z * slice + thread - group * slice;
#pragma unroll 1
  for (int row = blockIdx.y; row < split.rows; row += gridDim.y) {
    const PartRows part_row(p, split, row);
    SliceSum sum = sum_parts(p, part_row, split.splits, group, groups, column);
    if (groups > 1) {
      __syncthreads();
      shared[thread] = sum;
      __syncthreads();
      if (group > 0) continue;
#pragma unroll 1
      for (int other = 1; other < groups; ++other) {
        const SliceSum& theirs = shared[thread + other * slice];
        const float most = fmaxf(sum.m, theirs.m), weight = exp2_approx(theirs.m - base_of(most));
        sum.scale(most);
        sum.l += weight * theirs.l;
        sum.add(weight, theirs.o);
      }
    }
    const int64_t out_row = split.out_row + row;
    const float factor = inverse(sum.l);
    store_four(p.out, out_row * 512 + column * 4, p.out_dtype, sum.o.x * factor, sum.o.y * factor, sum.o.z * factor, sum.o.w * factor);
    if (column == 0) p.lse[out_row] = sum.l > 0.f ? (sum.m + __log2f(sum.l)) * kLn2 : -INFINITY;
  }
}

}  // namespace flashmla::decode_few
