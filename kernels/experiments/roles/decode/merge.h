// Merging the parts of a split row tile: out = sum_i 2^(lse_i - lse) out_i, lse = log2 sum_i 2^lse_i.
//
// The blocks that computed a tile's parts merge it themselves, a slice of the output each: a second kernel would start when
// all have ended, which costs more than the merge. Parts are summed in a fixed order: results don't depend on timing.
//
// 1. A block that has written its part counts itself in at the tile's MlaMerge.
// 2. When all its work is done it waits for the others, who end at about the same time, and merges its slice.
// 3. Waiting has an end, so that two kernels which keep each other's blocks off the device still finish: a block that has
//    waited for merge_patience cycles notes its desertion and leaves; the last one to arrive merges the slices of those.
// 4. Counters alternate between two sets by launch; each launch clears the next one's.
#pragma once
#include "config.h"

namespace flashmla::decode {

constexpr int kMergeThreads = 256;
constexpr int kSliceCols = 64;                              // 16 lanes of four columns
constexpr int kRowSlices = kValueWidth / kSliceCols;
constexpr int kHalfWarps = kMergeThreads / 16;

__device__ __forceinline__ MlaMergeSet& merge_set(const MlaDecodeParams& p, int worker, uint32_t launch) {
  return p.merges[worker].sets[launch & 1];
}
__device__ __forceinline__ uint64_t load_acquire(const uint64_t* address) {
  uint64_t v;
  asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(address) : "memory");
  return v;
}
__device__ __forceinline__ uint32_t arrived(uint64_t counts) { return uint32_t(counts); }
__device__ __forceinline__ uint32_t deserted(uint64_t counts) { return uint32_t(counts >> 32); }

// By both values warpgroups, after their partial results are written.
__device__ __forceinline__ void merge_arrive(const MlaDecodeParams& p, SharedStorage& sh, const Work& work, int index) {
  ptx::bar_sync(kValuesSync, kMergeThreads);
  if (threadIdx.x != kValuesLeft * 128) return;
  sh.merges[index] = work;
  __threadfence();
  const uint64_t before = atomicAdd(reinterpret_cast<unsigned long long*>(&merge_set(p, work.first_worker, sh.launch).counts), 1ull);
  // The last one learns of deserters here: whoever deserts later finds everybody arrived.
  sh.deserted[index] = arrived(before) + 1 == uint32_t(work.parts) && deserted(before) > 0;
}

// One thread: 0 left, 1 all have arrived, 2 so have they and some have left.
__device__ __forceinline__ int await_parts(const MlaDecodeParams& p, const Work& work, uint32_t launch, uint32_t others_left) {
  MlaMergeSet& set = merge_set(p, work.first_worker, launch);
  const long long start = clock64();
  while (arrived(load_acquire(&set.counts)) < uint32_t(work.parts)) {
    if (clock64() - start < p.merge_patience) continue;
    atomicOr(&set.deserters[work.part / 32], 1u << (work.part % 32));
    __threadfence();
    const uint64_t before = atomicAdd(reinterpret_cast<unsigned long long*>(&set.counts), 1ull << 32);
    if (arrived(before) < uint32_t(work.parts)) return 0;
    break;
  }
  __threadfence();
  return others_left != 0 ? 2 : 1;
}

__device__ __forceinline__ void store_four(const MlaDecodeParams& p, int64_t index, float4 v) {
  if (p.out_dtype == FLASHMLA_F32) {
    *reinterpret_cast<float4*>(static_cast<float*>(p.out) + index) = v;
  } else {
    const bool bf16 = p.out_dtype == FLASHMLA_BF16;
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(p.out) + index) =
        make_uint2(bf16 ? Bf16::pack(v.x, v.y) : F16::pack(v.x, v.y), bf16 ? Bf16::pack(v.z, v.w) : F16::pack(v.z, v.w));
  }
}

// Slice `part` of the tile: a contiguous run of units of (row, 64 columns). A half warp sums a unit, or `group` of them its parts.
__device__ __forceinline__ void merge_slice(const MlaDecodeParams& p, SharedStorage& sh, const Work& work, int part) {
  const int n = work.parts, units = work.rows * kRowSlices;
  const int first = units * part / n, count = units * (part + 1) / n - first;
  if (count == 0) return;
  const int thread = threadIdx.x - kValuesLeft * 128, lane = thread & 15, half_warp = thread >> 4;
  float* weights = reinterpret_cast<float*>(sh.ring[0]);  // [rows of the slice, n]
  float4* sums = reinterpret_cast<float4*>(sh.ring[1]);   // [half warps, 16]
  const int first_row = first / kRowSlices, rows = (first + count - 1) / kRowSlices - first_row + 1;
  // Row r of part i stands at row first_slot + i * stride + r of the partial results; that of part 0 is one slot further.
  const int64_t stride = int64_t(2 * kRows) * p.tiles_per_group, first_slot = int64_t(2 * kRows) * work.first_worker;

  // Weights of each row's parts, and its log-sum-exp: a warp a row.
#pragma unroll 1
  for (int r = thread >> 5; r < rows; r += kMergeThreads / 32) {
    const float* lse = p.partial_lse + first_slot + first_row + r;
    float top = -INFINITY, total = 0.f;
#pragma unroll 1
    for (int i = thread & 31; i < n; i += 32) top = fmaxf(top, weights[r * n + i] = __ldcg(lse + i * stride + (i == 0 ? kRows : 0)));
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
    const float base = top == -INFINITY ? 0.f : top;  // a row that sees nothing: all weights are 0
#pragma unroll 1
    for (int i = thread & 31; i < n; i += 32) total += weights[r * n + i] = exp2f(weights[r * n + i] - base);
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) total += __shfl_xor_sync(0xffffffffu, total, d);
    const float inv = total > 0.f ? 1.f / total : 0.f;
#pragma unroll 1
    for (int i = thread & 31; i < n; i += 32) weights[r * n + i] *= inv;
    if ((thread & 31) == 0 && first <= (first_row + r) * kRowSlices)
      p.lse[work.out_row + first_row + r] = total > 0.f ? (top + log2f(total)) * kLn2 : -INFINITY;
  }
  ptx::bar_sync(kValuesSync, kMergeThreads);

  int group = 1;
  while (group * 2 * count <= kHalfWarps && group * 2 <= n) group *= 2;
  const int step = kHalfWarps / group, mine = half_warp % group;
  auto source = [&](int unit) {
    return p.partial_out + (first_slot + unit / kRowSlices) * kValueWidth + unit % kRowSlices * kSliceCols + lane * 4;
  };
  // Sums kUnits units, `apart` from each other; several units or several parts at a time are under way.
  auto sum = [&](auto& acc, int u, int apart) {
    constexpr int kUnits = sizeof(acc) / sizeof(float4);
    const float* from[kUnits];
    const float* weight[kUnits];
#pragma unroll
    for (int k = 0; k < kUnits; ++k) {
      const int unit = first + min(u + k * apart, count - 1);
      acc[k] = make_float4(0.f, 0.f, 0.f, 0.f);
      from[k] = source(unit);
      weight[k] = weights + (unit / kRowSlices - first_row) * n;
    }
#pragma unroll(8 / kUnits)
    for (int i = mine; i < n; i += group) {
      const int64_t at = (i * stride + (i == 0 ? kRows : 0)) * kValueWidth;
#pragma unroll
      for (int k = 0; k < kUnits; ++k) {
        const float4 v = __ldcg(reinterpret_cast<const float4*>(from[k] + at));
        const float w = weight[k][i];
        acc[k].x += w * v.x;
        acc[k].y += w * v.y;
        acc[k].z += w * v.z;
        acc[k].w += w * v.w;
      }
    }
  };
  auto store = [&](int u, float4 v) {
    const int unit = first + u;
    store_four(p, (work.out_row + unit / kRowSlices) * kValueWidth + unit % kRowSlices * kSliceCols + lane * 4, v);
  };
  if (group == 1) {
#pragma unroll 1
    for (int u = half_warp; u < count; u += step * 4) {
      float4 acc[4];
      sum(acc, u, step);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (u + k * step < count) store(u + k * step, acc[k]);
      }
    }
    return;
  }
  const int u = half_warp / group;
  float4 acc[1];
  sum(acc, u, 0);
  sums[thread] = acc[0];
  ptx::bar_sync(kValuesSync, kMergeThreads);
  if (mine != 0 || u >= count) return;
#pragma unroll 1
  for (int g = 1; g < group; ++g) {
    const float4 other = sums[thread + g * 16];
    acc[0].x += other.x;
    acc[0].y += other.y;
    acc[0].z += other.z;
    acc[0].w += other.w;
  }
  store(u, acc[0]);
}

// The merge of a part that has arrived, by both values warpgroups when all the block's work is done.
__device__ __forceinline__ void merge(const MlaDecodeParams& p, SharedStorage& sh, int index) {
  const Work& work = sh.merges[index];
  if (threadIdx.x == kValuesLeft * 128) sh.merge_state[index] = await_parts(p, work, sh.launch, sh.deserted[index]);
  ptx::bar_sync(kValuesSync, kMergeThreads);
  const int state = sh.merge_state[index];
  if (state == 0) return;
  merge_slice(p, sh, work, work.part);
  if (state == 1) return;
  const MlaMergeSet& set = merge_set(p, work.first_worker, sh.launch);
  for (int part = 0; part < work.parts; ++part) {
    if ((__ldcg(&set.deserters[part / 32]) >> (part % 32) & 1) == 0) continue;
    ptx::bar_sync(kValuesSync, kMergeThreads);
    merge_slice(p, sh, work, part);
  }
}

}  // namespace flashmla::decode
