// A tile of a product, whatever multiplies it.
#pragma once
#include <stdint.h>

#include "../include/flashmla_model_params.h"

namespace flashmla {

// out[r, j] = Σ_k x[row(r), k] * weight[j, k], or added to it, for r < rows and some columns j of o, from `column` on.
struct TileProduct {
  const float* x;
  int64_t x_stride;
  const int32_t* map;  // source row of each row as map[r] / map_divisor, or null: r itself
  int map_divisor;
  int rows;
  const void* weight;      // [o, i]
  const void* weight_map;  // of a tensor whose rows from `weight_row` on these are, or null
  const void* up_map;      // of the second weight of a gated product, or null
  int64_t weight_row;
  int dtype;
  int64_t o, i, column;
  float* out;
  int64_t out_stride;
  bool vector, add;

  __device__ __forceinline__ const float* row(int r) const { return x + (map != nullptr ? int64_t(map[r] / map_divisor) : int64_t(r)) * x_stride; }
};

// Tile (row_tile, column_tile) of tiles of `rows` x `columns`, of head blockIdx.z.
__device__ __forceinline__ TileProduct tile_of(const MlaLinearParams& p, int64_t row_tile, int rows, int64_t column_tile, int columns) {
  const int64_t first = row_tile * rows, head = blockIdx.z;
  TileProduct tile;
  tile.x = p.x + first * p.x_stride + head * p.x_head_stride;
  tile.x_stride = p.x_stride;
  tile.map = nullptr;
  tile.map_divisor = 1;
  tile.rows = int(min(int64_t(rows), p.n - first));
  tile.dtype = p.weight_dtype;
  tile.weight = static_cast<const char*>(p.weight) + head * p.o * p.i * (p.weight_dtype == FLASHMLA_VALUE_BF16 ? 2 : 4);
  tile.weight_map = p.weight_map;
  tile.up_map = p.up_map;
  tile.weight_row = head * p.o;
  tile.o = p.o;
  tile.i = p.i;
  tile.column = column_tile * columns;
  tile.out = p.out + first * p.out_stride + head * p.out_head_stride;
  tile.out_stride = p.out_stride;
  tile.vector = p.vector != 0;
  tile.add = p.add != 0;
  return tile;
}

// A result to its place, or added to what stands there. Nobody else adds to it meanwhile, so nothing depends on an order.
__device__ __forceinline__ void put(float* target, float value, bool add) {
  if (add) atomicAdd(target, value);
  else *target = value;
}

}  // namespace flashmla
