// Merges the partial results of split row tiles: out = sum_i 2^(lse_i - lse) out_i, lse = log2 sum_i 2^lse_i.
//
// 1. A block of 512 threads takes four rows of one split tile group, 128 threads and four columns each a row.
// 2. Which tile group: the blockIdx.x-th one when there are no more groups than workers, else the one that starts in
//    group worker blockIdx.x and runs past its end (there is at most one).
// 3. Everything up to there needs only the lengths and overlaps the decode kernel's tail; then the block waits for it.
// 4. Parts are summed in worker order: results do not depend on timing.
#pragma once
#include "numeric.h"
#include "schedule.h"

namespace flashmla {

constexpr int kCombineRows = 4;

__device__ __forceinline__ void combine(const MlaDecodeParams& p) {
  const int tile_rows = p.tile_rows;
  __shared__ LinePosition shared_at;
  const int64_t group_workers = p.workers / p.tiles_per_group;
  const int group_rows = tile_rows * p.tiles_per_group;
  const int groups_per_seq = (p.s_q * p.h_q + group_rows - 1) / group_rows;
  const bool by_group = int64_t(p.batch) * groups_per_seq <= group_workers;

  if (threadIdx.x < 32) {
    const LinePosition at = locate(p, tile_rows, by_group ? 0 : int64_t(blockIdx.x) + 1, by_group ? 0 : -1);
    if (threadIdx.x == 0) shared_at = at;
  }
  __syncthreads();
  LinePosition at = shared_at;
  int seq, group;
  int64_t group_start;
  SequenceShape s;
  if (by_group) {
    seq = blockIdx.x / groups_per_seq;
    group = blockIdx.x % groups_per_seq;
    int64_t start = 0;
    for (int i = 0; i < seq; ++i) start += line_units(p, sequence_shape(p, i, tile_rows));
    s = sequence_shape(p, seq, tile_rows);
    if (group >= s.groups) return;
    group_start = start + int64_t(group) * (s.blocks + p.tile_overhead);
  } else {
    const int64_t target = (int64_t(blockIdx.x) + 1) * at.chunk - 1;
    if (at.seq >= p.batch) return;
    seq = at.seq;
    s = sequence_shape(p, seq, tile_rows);
    group = int((target - at.seq_start) / (s.blocks + p.tile_overhead));
    group_start = at.seq_start + int64_t(group) * (s.blocks + p.tile_overhead);
  }
  if (s.blocks == 0) return;
  const int64_t first = (group_start + p.tile_overhead) / at.chunk;
  const int64_t last = (group_start + p.tile_overhead + s.blocks - 1) / at.chunk;
  if (first == last || (!by_group && first != int64_t(blockIdx.x))) return;
  const int splits = int(last - first) + 1;

  const int sub = threadIdx.x / 128, lane = threadIdx.x % 128;
  const int row_in_group = blockIdx.y * kCombineRows + sub;
  const int row = group * group_rows + row_in_group;  // of the sequence's s_q * h_q rows
  const bool active = row_in_group < group_rows && row < s.s_q * p.h_q;
  const int member = row_in_group / tile_rows;
  const int64_t tile_row = row_in_group % tile_rows;

  asm volatile("griddepcontrol.wait;" ::: "memory");
  if (!active) return;

  auto slot_row = [&](int i) {
    const int64_t cluster = (first + i) * p.tiles_per_group + member;
    return partial_slot(cluster, i == 0) * tile_rows + tile_row;
  };
  // Every thread of a row reads the row's few log-sum-exps itself (one cache line each), in the same order.
  float max_lse = -INFINITY;
  for (int i = lane & 31; i < splits; i += 32) max_lse = fmaxf(max_lse, p.partial_lse[slot_row(i)]);
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) max_lse = fmaxf(max_lse, __shfl_xor_sync(0xffffffffu, max_lse, d));
  const int64_t out_row = int64_t(s.query_start) * p.h_q + row;
  if (max_lse == -INFINITY) {
    store_pair(p.out, out_row * 512 + lane * 4, p.out_dtype, 0.f, 0.f);
    store_pair(p.out, out_row * 512 + lane * 4 + 2, p.out_dtype, 0.f, 0.f);
    if (lane == 0) p.lse[out_row] = -INFINITY;
    return;
  }
  float4 acc = make_float4(0.f, 0.f, 0.f, 0.f);
  float total = 0.f;
  constexpr int kBatch = 8;
  for (int base = 0; base < splits; base += kBatch) {
    float4 part[kBatch];
    float weight[kBatch];
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const int i = base + u < splits ? base + u : splits - 1;
      const int64_t r = slot_row(i);
      part[u] = __ldcs(reinterpret_cast<const float4*>(p.partial_out + r * 512) + lane);
      weight[u] = base + u < splits ? p.partial_lse[r] : -INFINITY;
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
  const float inv = 1.f / total;
  store_pair(p.out, out_row * 512 + lane * 4, p.out_dtype, acc.x * inv, acc.y * inv);
  store_pair(p.out, out_row * 512 + lane * 4 + 2, p.out_dtype, acc.z * inv, acc.w * inv);
  if (lane == 0) p.lse[out_row] = (max_lse + log2f(total)) * kLn2;
}

}  // namespace flashmla
