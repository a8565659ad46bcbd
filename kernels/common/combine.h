// Merges the partial results of split row tiles: out = sum_i 2^(lse_i - lse) out_i, lse = log2 sum_i 2^lse_i.
//
// 1. blockIdx.x names a tile group's entry in p.splits; there is one for each tile group, or one for each worker, whichever is less.
//    Most entries have nothing to merge when sequences are many.
// 2. A warp merges a row. Blocks are as many as run at once: a second wave would wait for all of the first one's latency.
// 3. Where rows are few and their parts many (gridDim.z = 2), a block merges half of the columns of one row, and eight groups of 64
//    threads share the parts.
// 4. Parts are summed in worker order: results do not depend on timing.
// It runs when everybody waits for it: little code, and all loads on their way together.
#pragma once
#include "numeric.h"
#include "schedule.h"

namespace flashmla {

constexpr int kCombineWarps = 16;

// Where the parts of a row of a split tile group are.
struct PartRows {
  const MlaDecodeParams& p;
  int first_worker, member, tile_row;

  __device__ __forceinline__ PartRows(const MlaDecodeParams& p_, const MlaSplit& split, int row)
      : p(p_), first_worker(split.first_worker), member(unsigned(row) / unsigned(p_.tile_rows)), tile_row(row - member * p_.tile_rows) {}
  __device__ __forceinline__ int operator()(int i) const {
    return partial_slot((first_worker + i) * p.tiles_per_group + member, i == 0) * p.tile_rows + tile_row;
  }
};

// Largest log-sum-exp of a row's parts. One warp; each reads them all, in the same order.
__device__ __forceinline__ float largest_lse(const MlaDecodeParams& p, const PartRows& part_row, int splits) {
  float most = -INFINITY;
  for (int i = threadIdx.x & 31; i < splits; i += 32) most = fmaxf(most, p.partial_lse[part_row(i)].x);
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, d));
  return most;
}

// Weight of a part; in `scaled` with the factor that takes its scale back. base: the largest lse, or 0 if no part saw a token.
__device__ __forceinline__ float part_weight(const MlaDecodeParams& p, int part_row, float base, float& scaled) {
  const float2 lse_and_factor = p.partial_lse[part_row];
  const float weight = exp2_approx(lse_and_factor.x - base);
  scaled = weight * lse_and_factor.y;
  return weight;
}

// One row by one warp. A lane takes the row's 16-byte pieces 32 * k + lane.
template <bool kHalves, int kBatch>
__device__ __forceinline__ void combine_row(const MlaDecodeParams& p, const MlaSplit& split, int row) {
  constexpr int kPieces = kHalves ? 2 : 4, kColumns = 16 / kPieces;  // columns of a piece
  const int lane = threadIdx.x & 31, splits = split.splits;
  const PartRows part_row(p, split, row);
  const uint4* parts = static_cast<const uint4*>(p.partial_out);
  uint4 piece[kBatch][kPieces];
  auto fetch = [&](int base) {
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      if (base + u >= splits) continue;
#pragma unroll
      for (int k = 0; k < kPieces; ++k) piece[u][k] = __ldcs(parts + (int64_t(part_row(base + u)) * kPieces + k) * 32 + lane);
    }
  };
  fetch(0);
  const float most = largest_lse(p, part_row, splits);
  float acc[kPieces][kColumns] = {};
  float total = 0.f;
  for (int base = 0;;) {
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      if (base + u >= splits) continue;
      float scaled;
      total += part_weight(p, part_row(base + u), base_of(most), scaled);
#pragma unroll
      for (int k = 0; k < kPieces; ++k) {
        const uint32_t word[4] = {piece[u][k].x, piece[u][k].y, piece[u][k].z, piece[u][k].w};
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          if constexpr (kHalves) {
            const float2 v = __half22float2(*reinterpret_cast<const __half2*>(&word[c]));
            acc[k][2 * c] += scaled * v.x;
            acc[k][2 * c + 1] += scaled * v.y;
          } else {
            acc[k][c] += scaled * __uint_as_float(word[c]);
          }
        }
      }
    }
    base += kBatch;
    if (base >= splits) break;
    fetch(base);
  }
  const int64_t out_row = split.out_row + row;
  const float inv = inverse(total);
#pragma unroll
  for (int k = 0; k < kPieces; ++k) {
#pragma unroll
    for (int c = 0; c < kColumns; c += 4) {
      store_four(p.out, out_row * 512 + (k * 32 + lane) * kColumns + c, p.out_dtype, acc[k][c] * inv, acc[k][c + 1] * inv,
                 acc[k][c + 2] * inv, acc[k][c + 3] * inv);
    }
  }
  if (lane == 0) p.lse[out_row] = (most + __log2f(total)) * kLn2;
}

// Columns 4 * lane to 4 * lane + 3 of a part's row. Read once.
__device__ __forceinline__ float4 load_part(const void* rows, bool halves, int64_t row, int lane) {
  const int64_t index = row * 128 + lane;
  if (!halves) return __ldcs(static_cast<const float4*>(rows) + index);
  const uint2 raw = __ldcs(static_cast<const uint2*>(rows) + index);
  const float2 lo = __half22float2(*reinterpret_cast<const __half2*>(&raw.x)), hi = __half22float2(*reinterpret_cast<const __half2*>(&raw.y));
  return make_float4(lo.x, lo.y, hi.x, hi.y);
}

// Half of a row's columns by one block of 512 threads: four columns a thread, every eighth part.
template <bool kHalves>
__device__ __forceinline__ void combine_half_row(const MlaDecodeParams& p, const MlaSplit& split, int row, float4* shared_acc,
                                                 float* shared_total) {
  constexpr int kBatch = 8, kGroups = 8;
  const int group = threadIdx.x / 64, lane = threadIdx.x % 64 + blockIdx.z * 64, splits = split.splits;
  const PartRows part_row(p, split, row);
  float4 part[kBatch];
  auto fetch = [&](int base) {
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const int i = base + u * kGroups;
      if (i < splits) part[u] = load_part(p.partial_out, kHalves, part_row(i), lane);
    }
  };
  fetch(group);
  const float most = largest_lse(p, part_row, splits);
  float4 acc = make_float4(0.f, 0.f, 0.f, 0.f);
  float total = 0.f;
  for (int base = group;;) {
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const int i = base + u * kGroups;
      if (i >= splits) continue;
      float scaled;
      total += part_weight(p, part_row(i), base_of(most), scaled);
      acc.x += scaled * part[u].x;
      acc.y += scaled * part[u].y;
      acc.z += scaled * part[u].z;
      acc.w += scaled * part[u].w;
    }
    base += kBatch * kGroups;
    if (base >= splits) break;
    fetch(base);
  }
  shared_acc[threadIdx.x] = acc;
  if (threadIdx.x % 64 == 0) shared_total[group] = total;
  __syncthreads();
  if (group != 0) return;
#pragma unroll
  for (int i = 1; i < kGroups; ++i) {
    const float4 other = shared_acc[threadIdx.x + i * 64];
    total += shared_total[i];
    acc.x += other.x;
    acc.y += other.y;
    acc.z += other.z;
    acc.w += other.w;
  }
  const int64_t out_row = split.out_row + row;
  const float inv = inverse(total);
  store_four(p.out, out_row * 512 + lane * 4, p.out_dtype, acc.x * inv, acc.y * inv, acc.z * inv, acc.w * inv);
  if (lane == 0) p.lse[out_row] = (most + __log2f(total)) * kLn2;
}

// Lets the kernel after this one start, and waits for the one before it.
__device__ __forceinline__ void overlap() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// What there is to merge in an entry. Entries by tile are as many as the sequences may have tiles: one that has none now still holds an older
// launch's.
__device__ __forceinline__ MlaSplit split_of(const MlaDecodeParams& p, int entry) {
  MlaSplit split = p.splits[entry];
  if (p.split_by_tile && p.query_start != nullptr) {
    const int seq = unsigned(entry) / unsigned(p.groups), group = entry - seq * p.groups;
    const int rows = (p.query_start[seq + 1] - p.query_start[seq]) * p.h_q;
    if (group * p.tile_rows * p.tiles_per_group >= rows) split.splits = 0;
  }
  return split;
}

template <bool kHalves, int kBatch>
__device__ __forceinline__ void combine_rows(const MlaDecodeParams& p, const MlaSplit& split, int warps) {
#pragma unroll 1
  for (int row = blockIdx.y + (threadIdx.x >> 5) * gridDim.y; row < split.rows; row += gridDim.y * warps) {
    combine_row<kHalves, kBatch>(p, split, row);
  }
}

template <bool kHalves>
__device__ __forceinline__ void combine(const MlaDecodeParams& p) {
  __shared__ float4 shared_acc[512];
  __shared__ float shared_total[8];
  overlap();
  const MlaSplit split = split_of(p, blockIdx.x);
  if (split.splits < 2) return;
  if (gridDim.z == 2) {
    if (int(blockIdx.y) < split.rows) combine_half_row<kHalves>(p, split, blockIdx.y, shared_acc, shared_total);
    return;
  }
  combine_rows<kHalves, kHalves ? 4 : 2>(p, split, kCombineWarps);
}

// Rows only, by half as many warps with twice the registers: the parts of most rows are on their way all at once.
template <bool kHalves>
__device__ __forceinline__ void combine_rows_only(const MlaDecodeParams& p) {
  overlap();
  const MlaSplit split = split_of(p, blockIdx.x);
  if (split.splits > 1) combine_rows<kHalves, kHalves ? 9 : 4>(p, split, kCombineWarps / 2);
}

}  // namespace flashmla
