// The mixture of experts: only the chosen ones are read, and a token's sum runs in the order of its choices.
//
// Few pairs (token, choice): a warp for each output of each pair (expert_up), then for some outputs of every eighth choice of a token (expert_down).
// Many pairs: sort them by expert, multiply tiles of 64 pairs of one expert, sum for each token.
#pragma once
#include "rows.h"
#include "tile.h"

namespace flashmla {

// Groups of outputs that a warp goes through: where its expert stands has to be looked up once for them.
constexpr int kUpGroups = 2, kDownGroups = 2;
constexpr int kUpOutputs = 8 * kUpGroups;

// gate[pair, j] = silu(gate x) * (up x). Grid (ceil(inner / 16), pairs), 256 threads.
__device__ __forceinline__ void expert_up(const MlaExpertParams& p) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int64_t pair = blockIdx.y;
  const int id = p.ids[pair];
  if (id < 0 || id >= p.count) return;
  const MlaExpert& expert = p.experts[id];
  const bool alike = expert.dtypes[0] == expert.dtypes[1];
  const float* x = p.x + pair / p.choices * p.hidden;
#pragma unroll 1
  for (int group = 0; group < kUpGroups; ++group) {
    const int64_t j = int64_t(blockIdx.x) * kUpOutputs + group * 8 + warp, at = j * p.hidden;
    if (j >= p.inner) return;
    float sums[2] = {};
    if (alike) {
      dot_each<2>({expert.gate, expert.up}, expert.dtypes[0], at, x, p.hidden, p.vector != 0, sums);
    } else {
#pragma unroll 1
      for (int n = 0; n < 2; ++n) {
        float sum[1][1] = {};
        dot_rows<1, 1>(n == 0 ? expert.gate : expert.up, expert.dtypes[n], at, 0, x, 0, 1, p.hidden, p.vector != 0, sum);
        (n == 0 ? sums[0] : sums[1]) = sum[0][0];
      }
    }
    const float gate = warp_sum(sums[0]), up = warp_sum(sums[1]);
    if (lane == 0) p.gate[pair * p.inner + j] = silu(gate) * up;
  }
}

constexpr int kDownRows = 4, kDownOutputs = kDownRows * kDownGroups;

// A lane's part of rows j ... of an expert's third matrix with x; the last row stands for those past it.
__device__ __forceinline__ void down_rows(const MlaExpertParams& p, const MlaExpert& expert, int64_t j, const float* x, float (&sums)[kDownRows]) {
  const int dtype = expert.dtypes[2];
  if (p.vector != 0 && dtype == FLASHMLA_VALUE_BF16) {
    const uint16_t* rows[kDownRows];
#pragma unroll
    for (int i = 0; i < kDownRows; ++i) rows[i] = static_cast<const uint16_t*>(expert.down) + min(j + i, p.hidden - 1) * p.inner;
    dot_halves<kDownRows, 3>(rows, x, p.inner, sums);
    return;
  }
#pragma unroll 1
  for (int i = 0; i < kDownRows; ++i) {
    float sum[1][1] = {};
    dot_rows<1, 1>(expert.down, dtype, min(j + i, p.hidden - 1) * p.inner, 0, x, 0, 1, p.inner, p.vector != 0, sum);
#pragma unroll
    for (int n = 0; n < kDownRows; ++n) sums[n] = n == i ? sum[0][0] : sums[n];
  }
}

// out[r, j] += Σ_c weights[r, c] * (down gate[r, c]): a warp takes every eighth choice. Grid (ceil(hidden / 8), n), 256 threads.
__device__ __forceinline__ void expert_down(const MlaExpertParams& p) {
  __shared__ float sums[8][kDownOutputs];
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int64_t first = int64_t(blockIdx.x) * kDownOutputs, row = blockIdx.y;
  float totals[kDownGroups][kDownRows] = {};
  for (int c = warp; c < p.choices; c += 8) {
    const int64_t pair = row * p.choices + c;
    const int id = p.ids[pair];
    const float weight = p.weights[pair];
    const bool exists = id >= 0 && id < p.count;
#pragma unroll
    for (int group = 0; group < kDownGroups; ++group) {
      float part[kDownRows] = {};
      if (exists) down_rows(p, p.experts[id], first + group * kDownRows, p.gate + pair * p.inner, part);
#pragma unroll
      for (int i = 0; i < kDownRows; ++i) totals[group][i] = fmaf(weight, exists ? part[i] : nan_value(), totals[group][i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kDownOutputs; ++i) {
    const float total = warp_sum(totals[i / kDownRows][i % kDownRows]);
    if (lane == 0) sums[warp][i] = total;
  }
  __syncthreads();
  const int64_t j = first + threadIdx.x;
  if (threadIdx.x >= kDownOutputs || j >= p.hidden) return;
  float total = 0.f;
  for (int w = 0; w < 8; ++w) total += sums[w][threadIdx.x];
  p.out[row * p.hidden + j] += total;
}

// Sorts the pairs by expert; which place a pair has among its expert's makes no difference to its row. One block of 1024 threads, one for each expert.
__device__ __forceinline__ void expert_sort(const MlaExpertParams& p) {
  __shared__ int next[1024];
  __shared__ uint64_t sums[32];
  const int thread = threadIdx.x, pairs = int(p.n * p.choices);
  next[thread] = 0;
  __syncthreads();
  for (int pair = thread; pair < pairs; pair += 1024) {
    const int id = p.ids[pair];
    if (id >= 0 && id < p.count) atomicAdd(&next[id], 1);
  }
  __syncthreads();
  const int count = next[thread], tiles = (count + kTile - 1) / kTile;
  uint64_t all;
  const uint64_t before = block_scan(uint64_t(tiles) << 32 | uint32_t(count), sums, all);  // tiles and pairs at once
  const int start = int(uint32_t(before)), tile = int(before >> 32);
  next[thread] = start;
  uint4* descriptions = reinterpret_cast<uint4*>(p.tiles);
  for (int i = 0; i < tiles; ++i) {
    descriptions[tile + i] = make_uint4(uint32_t(thread), uint32_t(start + i * kTile), uint32_t(min(count - i * kTile, kTile)), 0u);
  }
  for (int i = int(all >> 32) + thread; i < p.most_tiles; i += 1024) descriptions[i] = make_uint4(0u, 0u, 0u, 0u);
  __syncthreads();
  for (int pair = thread; pair < pairs; pair += 1024) {
    const int id = p.ids[pair];
    const bool exists = id >= 0 && id < p.count;
    const int place = exists ? atomicAdd(&next[id], 1) : -1;
    p.place[pair] = place;
    if (exists) p.order[place] = pair;
  }
}

// Tile `index` of 64 sorted pairs, and tile `column_tile` of `columns` of one stage's outputs. False when there are fewer.
__device__ __forceinline__ bool expert_tile(const MlaExpertParams& p, int index, int64_t column_tile, int columns, TileProduct& tile) {
  const uint4 description = reinterpret_cast<const uint4*>(p.tiles)[index];
  const int first = int(description.y);
  if (description.z == 0) return false;
  const MlaExpert& expert = p.experts[description.x];
  const bool down = p.stage == 2;
  tile.rows = int(description.z);
  tile.x = down ? p.gate + first * p.inner : p.x;
  tile.x_stride = down ? p.inner : p.hidden;
  tile.map = down ? nullptr : p.order + first;
  tile.map_divisor = p.choices;
  tile.weight = p.stage == 0 ? expert.gate : p.stage == 1 ? expert.up : expert.down;
  tile.dtype = expert.dtypes[p.stage];
  tile.weight_map = expert.maps[p.stage];
  tile.up_map = expert.maps[1];
  tile.weight_row = 0;
  tile.o = down ? p.hidden : p.inner;
  tile.i = down ? p.inner : p.hidden;
  tile.column = column_tile * columns;
  tile.out_stride = tile.o;
  tile.out = (p.stage == 0 ? p.gate : p.stage == 1 ? p.up : p.down) + first * tile.o;
  tile.vector = p.vector != 0;
  tile.add = false;
  return true;
}

// Grid (tiles at most, ceil(columns / 64)), 128 threads.
__device__ __forceinline__ void expert_tiles(const MlaExpertParams& p) {
  TileProduct tile;
  if (expert_tile(p, blockIdx.x, blockIdx.y, kTile, tile)) tile_product(tile);
}

// The same with bf16 weights and twice the columns. Grid (tiles at most, ceil(columns / 128)), 256 threads.
__device__ __forceinline__ void expert_tiles_half(const MlaExpertParams& p) {
  __shared__ __align__(16) MmaShared<kWideTile> shared;
  TileProduct tile;
  if (expert_tile(p, blockIdx.x, blockIdx.y, kWideTile, tile)) tile_mma(tile, shared);
}

// out[r] += Σ_c weights[r, c] * down[place[r, c]]. Grid (n, ceil(hidden / 256)), 256 threads.
__device__ __forceinline__ void expert_sum(const MlaExpertParams& p) {
  const int64_t c = int64_t(blockIdx.y) * 256 + threadIdx.x, row = blockIdx.x;
  if (c >= p.hidden) return;
  float total = 0.f;
  for (int choice = 0; choice < p.choices; ++choice) {
    const int64_t pair = row * p.choices + choice;
    const int place = p.place[pair];
    total = fmaf(p.weights[pair], place < 0 ? nan_value() : p.down[place * p.hidden + c], total);
  }
  p.out[row * p.hidden + c] += total;
}

}  // namespace flashmla
