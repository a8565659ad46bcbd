// The mixture of experts: only the chosen ones are read, and a token's sum runs in the order of its choices.
//
// Few pairs (token, choice): a warp for each output of each pair (expert_up), then four for each output of each token (expert_down).
// Many pairs: sort them by expert, multiply tiles of 64 pairs of one expert, sum for each token.
#pragma once
#include "rows.h"
#include "tile.h"

namespace flashmla {

// gate[pair, j] = silu(gate x) * (up x). Grid (ceil(inner / 8), pairs), 256 threads.
__device__ __forceinline__ void expert_up(const MlaExpertParams& p) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int64_t j = int64_t(blockIdx.x) * 8 + warp, pair = blockIdx.y;
  const int id = p.ids[pair];
  if (j >= p.inner || id < 0 || id >= p.count) return;
  const MlaExpert& expert = p.experts[id];
  const float* x = p.x + pair / p.choices * p.hidden;
  float sums[2] = {};
  dot_row<2>({expert.gate, expert.up}, {expert.dtypes[0], expert.dtypes[1]}, j * p.hidden, x, p.hidden, p.vector != 0, sums);
  const float gate = warp_sum(sums[0]), up = warp_sum(sums[1]);
  if (lane == 0) p.gate[pair * p.inner + j] = silu(gate) * up;
}

constexpr int kDownOutputs = 2, kDownParts = 8 / kDownOutputs;

// out[r, j] += Σ_c weights[r, c] * (down gate[r, c]): every fourth choice by a warp. Grid (ceil(hidden / 2), n), 256 threads.
__device__ __forceinline__ void expert_down(const MlaExpertParams& p) {
  __shared__ float sums[kDownParts][kDownOutputs];
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, output = warp % kDownOutputs, part = warp / kDownOutputs;
  const int64_t j = int64_t(blockIdx.x) * kDownOutputs + output, row = blockIdx.y;
  float total = 0.f;
  for (int c = part; c < p.choices && j < p.hidden; c += kDownParts) {
    const int64_t pair = row * p.choices + c;
    const int id = p.ids[pair];
    float sum[1] = {nan_value()};
    if (id >= 0 && id < p.count) {
      sum[0] = 0.f;
      dot_row<1>({p.experts[id].down}, {p.experts[id].dtypes[2]}, j * p.inner, p.gate + pair * p.inner, p.inner, p.vector != 0, sum);
    }
    total = fmaf(p.weights[pair], sum[0], total);
  }
  total = warp_sum(total);
  if (lane == 0) sums[part][output] = total;
  __syncthreads();
  if (part > 0 || lane > 0 || j >= p.hidden) return;
  for (int i = 1; i < kDownParts; ++i) total += sums[i][output];
  p.out[row * p.hidden + j] += total;
}

// Sums of what the threads before this one have, of a pair of numbers each; `shared` has a word for each warp, and all get the same total.
__device__ __forceinline__ uint64_t sums_before(uint64_t mine, uint64_t* shared) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  uint64_t sum = mine;
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const uint64_t other = __shfl_up_sync(kWarp, sum, d);
    if (lane >= d) sum += other;
  }
  if (lane == 31) shared[warp] = sum;
  __syncthreads();
  uint64_t before = 0;
  for (int w = 0; w < warp; ++w) before += shared[w];
  return before + sum - mine;
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
  const uint64_t before = sums_before(uint64_t(tiles) << 32 | uint32_t(count), sums);
  const int start = int(uint32_t(before)), tile = int(before >> 32);
  next[thread] = start;
  if (thread < p.count) {
    p.starts[thread + 1] = start + count;
    p.tiles[thread + 1] = tile + tiles;
  }
  if (thread == 0) p.starts[0] = p.tiles[0] = 0;
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
  if (index >= p.tiles[p.count]) return false;
  int low = 0, high = p.count - 1;  // the last expert whose first tile is at most this one
  while (low < high) {
    const int middle = (low + high + 1) >> 1;
    if (p.tiles[middle] <= index) low = middle;
    else high = middle - 1;
  }
  const int first = p.starts[low] + (index - p.tiles[low]) * kTile;
  const MlaExpert& expert = p.experts[low];
  const bool down = p.stage == 2;
  tile.rows = min(kTile, p.starts[low + 1] - first);
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
