// The mixture of experts: only the chosen ones are read, and a token's sum runs in the order of its choices.
//
// Few pairs (token, choice): a warp for each output of each pair (expert_up), then for each output of each token (expert_down).
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
  float gate[1][1] = {}, up[1][1] = {};
  dot_rows<1, 1>(expert.gate, expert.dtypes[0], j * p.hidden, 0, x, 0, 1, p.hidden, p.vector != 0, gate);
  dot_rows<1, 1>(expert.up, expert.dtypes[1], j * p.hidden, 0, x, 0, 1, p.hidden, p.vector != 0, up);
  const float a = warp_sum(gate[0][0]), b = warp_sum(up[0][0]);
  if (lane == 0) p.gate[pair * p.inner + j] = silu(a) * b;
}

// out[r, j] += Σ_c weights[r, c] * (down gate[r, c]). Grid (ceil(hidden / 8), n), 256 threads.
__device__ __forceinline__ void expert_down(const MlaExpertParams& p) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int64_t j = int64_t(blockIdx.x) * 8 + warp, row = blockIdx.y;
  if (j >= p.hidden) return;
  float total = 0.f;
  for (int c = 0; c < p.choices; ++c) {
    const int64_t pair = row * p.choices + c;
    const int id = p.ids[pair];
    float sum = nan_value();
    if (id >= 0 && id < p.count) {
      float part[1][1] = {};
      dot_rows<1, 1>(p.experts[id].down, p.experts[id].dtypes[2], j * p.inner, 0, p.gate + pair * p.inner, 0, 1, p.inner, p.vector != 0, part);
      sum = warp_sum(part[0][0]);
    }
    total = fmaf(p.weights[pair], sum, total);
  }
  if (lane == 0) p.out[row * p.hidden + j] += total;
}

// Sorts the pairs by expert, each expert's in their order. One block of 1024 threads, one for each expert.
__device__ __forceinline__ void expert_sort(const MlaExpertParams& p) {
  __shared__ int ids[1024];
  __shared__ int sums[2][1024];
  const int thread = threadIdx.x, pairs = int(p.n * p.choices);
  int count = 0;
  for (int first = 0; first < pairs; first += 1024) {
    __syncthreads();
    ids[thread] = first + thread < pairs ? p.ids[first + thread] : -1;
    __syncthreads();
    const int n = min(1024, pairs - first);
    if (thread >= p.count) continue;
#pragma unroll 8
    for (int i = 0; i < n; ++i) count += ids[i] == thread;
  }
  sums[0][thread] = count;
  sums[1][thread] = (count + kTile - 1) / kTile;
  for (int d = 1; d < 1024; d <<= 1) {
    __syncthreads();
    const int a = thread >= d ? sums[0][thread - d] : 0, b = thread >= d ? sums[1][thread - d] : 0;
    __syncthreads();
    sums[0][thread] += a;
    sums[1][thread] += b;
  }
  int at = sums[0][thread] - count;
  if (thread < p.count) {
    p.starts[thread + 1] = sums[0][thread];
    p.tiles[thread + 1] = sums[1][thread];
  }
  if (thread == 0) p.starts[0] = p.tiles[0] = 0;
  for (int first = 0; first < pairs; first += 1024) {
    __syncthreads();
    const int id = first + thread < pairs ? p.ids[first + thread] : 0;
    ids[thread] = id;
    if (first + thread < pairs && (id < 0 || id >= p.count)) p.place[first + thread] = -1;
    __syncthreads();
    const int n = min(1024, pairs - first);
    if (thread >= p.count) continue;
#pragma unroll 8
    for (int i = 0; i < n; ++i) {
      if (ids[i] != thread) continue;
      p.order[at] = first + i;
      p.place[first + i] = at++;
    }
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
  tile.weight_row = 0;
  tile.o = down ? p.hidden : p.inner;
  tile.i = down ? p.inner : p.hidden;
  tile.column = column_tile * columns;
  tile.out_stride = tile.o;
  tile.out = (p.stage == 0 ? p.gate : p.stage == 1 ? p.up : p.down) + first * tile.o;
  tile.vector = p.vector != 0;
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
