// Sums to memory: by the threads that have all of them, or added up through shared memory where warpgroups take turns, and over a cluster whose
// blocks share a tile's columns of x.
#pragma once
#include "../../model/rows.h"
#include "../../model/tile_product.h"
#include "cluster.h"
#include "consumer.h"

namespace flashmla::linear {

// Two results, or one at the end, to their places; added there without waiting for what stands there.
__device__ __forceinline__ void write_pair(const TileProduct& p, int r, int64_t column, float a, float b, bool pairs) {
  if (r >= p.rows || column >= p.o) return;
  float* out = p.out + r * p.out_stride + column;
  if (pairs && column + 1 < p.o) {
    if (p.add) asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(out), "f"(a), "f"(b) : "memory");
    else *reinterpret_cast<float2*>(out) = make_float2(a, b);
    return;
  }
  put(out, a, p.add);
  if (column + 1 < p.o) put(out + 1, b, p.add);
}

// Whether rows of the output are such that pairs of values may be written at once.
__device__ __forceinline__ bool in_pairs(const TileProduct& p) { return p.out_stride % 2 == 0 && reinterpret_cast<uint64_t>(p.out) % 8 == 0; }

template <class C>
__device__ __forceinline__ void write_sums(const TileProduct& p, int rows, const Sums<C>& sums) {
  const int thread = threadIdx.x & 127, lane = thread & 31, r = rows + (thread >> 5) * 16 + (lane >> 2);
  const bool pairs = in_pairs(p);
#pragma unroll
  for (int n = 0; n < (C::kGated ? 1 : C::kProducts); ++n) {
#pragma unroll
    for (int j = 0; j < C::kWidth / 8; ++j) {
      const int64_t column = p.column + n * C::kWidth + j * 8 + (lane & 3) * 2;
      float v[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) v[e] = C::kGated ? silu(sums.of[0][4 * j + e]) * sums.of[C::kProducts - 1][4 * j + e] : sums.of[n][4 * j + e];
      write_pair(p, r, column, v[0], v[1], pairs);
      write_pair(p, r + 8, column, v[2], v[3], pairs);
    }
  }
}

__device__ __forceinline__ void store_shared8(uint32_t address, float a, float b) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(a), "f"(b) : "memory");
}

// The consumers' sums into their block's shared memory, once the ring is free.
template <class C>
__device__ __forceinline__ void stage_sums(uint32_t base, int rows, int turn, const Sums<C>& sums) {
  const int thread = threadIdx.x & 127, lane = thread & 31, r = rows + (thread >> 5) * 16 + (lane >> 2);
  ptx::bar_sync(2, C::kConsumers);
#pragma unroll
  for (int n = 0; n < C::kProducts; ++n) {
#pragma unroll
    for (int j = 0; j < C::kWidth / 8; ++j) {
      const uint32_t at = base + turn * C::kPartBytes + r * C::kSumStride + (n * C::kWidth + j * 8 + (lane & 3) * 2) * 4;
      store_shared8(at, sums.of[n][4 * j], sums.of[n][4 * j + 1]);
      store_shared8(at + 8 * C::kSumStride, sums.of[n][4 * j + 2], sums.of[n][4 * j + 3]);
    }
  }
}

// Four columns of a row, added up over the cluster's blocks and the turns of each, in their order.
template <class C, int kBlocks>
__device__ __forceinline__ float4 sum_of(uint32_t at) {
  float4 part[kBlocks * C::kTurns];
#pragma unroll
  for (int i = 0; i < kBlocks * C::kTurns; ++i) part[i] = load_cluster16(at + i % C::kTurns * C::kPartBytes, i / C::kTurns);
  float4 sum = part[0];
#pragma unroll
  for (int i = 1; i < kBlocks * C::kTurns; ++i) {
    sum.x += part[i].x, sum.y += part[i].y, sum.z += part[i].z, sum.w += part[i].w;
  }
  return sum;
}

// Rows [rank * rows / blocks, ...) of the tile, by all threads.
template <class C, int kBlocks>
__device__ __forceinline__ void add_up(const TileProduct& p, uint32_t base, int rank) {
  constexpr int kRows = C::kRows / kBlocks;
  const bool pairs = in_pairs(p);
  for (int at = threadIdx.x; at < kRows * C::kOutputs / 4; at += C::kThreads) {
    const int r = rank * kRows + at / (C::kOutputs / 4), c = at % (C::kOutputs / 4) * 4;
    if (r >= p.rows || p.column + c >= p.o) continue;
    const uint32_t at_part = base + r * C::kSumStride + c * 4;
    float4 sum = sum_of<C, kBlocks>(at_part);
    if constexpr (C::kGated) {
      const float4 up = sum_of<C, kBlocks>(at_part + C::kOutputs * 4);
      sum = make_float4(silu(sum.x) * up.x, silu(sum.y) * up.y, silu(sum.z) * up.z, silu(sum.w) * up.w);
    }
    write_pair(p, r, p.column + c, sum.x, sum.y, pairs);
    write_pair(p, r, p.column + c + 2, sum.z, sum.w, pairs);
  }
}

}  // namespace flashmla::linear
