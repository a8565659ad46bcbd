// A 64 x 64 tile of a product with many rows, by a block of 128 threads.
//
// bf16 weights: tensor cores. x is split into three bf16 parts, x = hi + mid + lo to 24 bits, so the product is as exact as in f32.
// f32 weights: plain multiply-adds, 8 x 4 outputs a thread.
// 1. The next step's x and weights are loaded to registers while the step in shared memory is multiplied.
// 2. Rows and columns past the end are zeros and never written.
#pragma once
#include "dot.h"
#include "mma.h"
#include "split.h"

namespace flashmla {

constexpr int kTile = 64, kTileThreads = 128;

// out[r, j] = Σ_k x[row(r), k] * weight[j, k] for r < rows and columns [column, column + 64) of o.
struct TileProduct {
  const float* x;
  int64_t x_stride;
  const int32_t* map;  // source row of each row as map[r] / map_divisor, or null: r itself
  int map_divisor;
  int rows;
  const void* weight;  // [o, i]
  int dtype;
  int64_t o, i, column;
  float* out;
  int64_t out_stride;
  bool vector;

  __device__ __forceinline__ const float* row(int r) const { return x + (map != nullptr ? int64_t(map[r] / map_divisor) : int64_t(r)) * x_stride; }
};

// Four values from `k` on, zeros past `n`.
__device__ __forceinline__ float4 load_four(const float* row, int64_t k, int64_t n, bool vector) {
  if (vector && k + 4 <= n) return *reinterpret_cast<const float4*>(row + k);
  return make_float4(k < n ? row[k] : 0.f, k + 1 < n ? row[k + 1] : 0.f, k + 2 < n ? row[k + 2] : 0.f, k + 3 < n ? row[k + 3] : 0.f);
}

constexpr int kMmaStep = 32, kMmaStride = kMmaStep + 8;  // the padding keeps fragments free of bank conflicts
constexpr int kFmaStep = 16, kFmaStride = kTile + 4;

union TileShared {
  struct {
    uint16_t x[3][kTile][kMmaStride];
    uint16_t w[kTile][kMmaStride];
  } mma;
  struct {
    float x[kFmaStep][kFmaStride];
    float w[kFmaStep][kFmaStride];
  } fma;
};

__device__ __forceinline__ uint32_t pair_at(const uint16_t* p) { return *reinterpret_cast<const uint32_t*>(p); }

__device__ __forceinline__ void tile_mma(const TileProduct& p, TileShared& shared) {
  auto& sh = shared.mma;
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31, g = lane >> 2, t = lane & 3;
  const int row0 = (warp >> 1) * 32, column0 = (warp & 1) * 32;  // the warp's quarter
  float4 next_x[4];
  uint4 next_w[2];
  const auto load = [&](int64_t k0) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int r = (thread >> 3) + 16 * j;
      next_x[j] = r < p.rows ? load_four(p.row(r), k0 + (thread & 7) * 4, p.i, p.vector) : make_float4(0.f, 0.f, 0.f, 0.f);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int64_t c = p.column + (thread >> 2) + 32 * j, k = k0 + (thread & 3) * 8;
      const uint16_t* w = static_cast<const uint16_t*>(p.weight) + c * p.i;
      next_w[j] = make_uint4(0u, 0u, 0u, 0u);
      if (c >= p.o) continue;
      if (p.vector && k + 8 <= p.i) {
        next_w[j] = __ldg(reinterpret_cast<const uint4*>(w + k));
      } else {
        uint32_t words[8];
#pragma unroll
        for (int e = 0; e < 8; ++e) words[e] = k + e < p.i ? w[k + e] : 0u;
        next_w[j] = make_uint4(words[0] | words[1] << 16, words[2] | words[3] << 16, words[4] | words[5] << 16, words[6] | words[7] << 16);
      }
    }
  };
  const auto store = [&]() {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t low[3], high[3];
      split_pair(next_x[j].x, next_x[j].y, low);
      split_pair(next_x[j].z, next_x[j].w, high);
#pragma unroll
      for (int part = 0; part < 3; ++part) {
        *reinterpret_cast<uint2*>(&sh.x[part][(thread >> 3) + 16 * j][(thread & 7) * 4]) = make_uint2(low[part], high[part]);
      }
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) *reinterpret_cast<uint4*>(&sh.w[(thread >> 2) + 32 * j][(thread & 3) * 8]) = next_w[j];
  };
  float acc[2][4][4] = {};
  load(0);
  for (int64_t k0 = 0; k0 < p.i; k0 += kMmaStep) {
    __syncthreads();
    store();
    __syncthreads();
    if (k0 + kMmaStep < p.i) load(k0 + kMmaStep);
#pragma unroll
    for (int k = 0; k < kMmaStep; k += 16) {
      uint32_t b[4][2];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const uint16_t* w = &sh.w[column0 + n * 8 + g][k + t * 2];
        b[n][0] = pair_at(w);
        b[n][1] = pair_at(w + 8);
      }
#pragma unroll
      for (int part = 2; part >= 0; --part) {  // the smallest first
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const uint16_t* x = &sh.x[part][row0 + m * 16 + g][k + t * 2];
          const uint32_t a[4] = {pair_at(x), pair_at(x + 8 * kMmaStride), pair_at(x + 8), pair_at(x + 8 * kMmaStride + 8)};
#pragma unroll
          for (int n = 0; n < 4; ++n) mma_bf16(acc[m][n], a, b[n]);
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int r = row0 + m * 16 + g + (e >> 1) * 8;
        const int64_t c = p.column + column0 + n * 8 + t * 2 + (e & 1);
        if (r < p.rows && c < p.o) p.out[r * p.out_stride + c] = acc[m][n][e];
      }
    }
  }
}

__device__ __forceinline__ void tile_fma(const TileProduct& p, TileShared& shared) {
  auto& sh = shared.fma;
  const int thread = threadIdx.x, row0 = (thread >> 4) * 8, column0 = (thread & 15) * 4;
  float4 next_x[2], next_w[2];
  const auto load = [&](int64_t k0) {
    const int64_t k = k0 + (thread & 3) * 4;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int r = (thread >> 2) + 32 * j;
      const int64_t c = p.column + r;
      next_x[j] = r < p.rows ? load_four(p.row(r), k, p.i, p.vector) : make_float4(0.f, 0.f, 0.f, 0.f);
      next_w[j] = c < p.o ? load_four(static_cast<const float*>(p.weight) + c * p.i, k, p.i, p.vector) : make_float4(0.f, 0.f, 0.f, 0.f);
    }
  };
  const auto store = [&]() {
    const int k = (thread & 3) * 4;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int r = (thread >> 2) + 32 * j;
      sh.x[k][r] = next_x[j].x, sh.x[k + 1][r] = next_x[j].y, sh.x[k + 2][r] = next_x[j].z, sh.x[k + 3][r] = next_x[j].w;
      sh.w[k][r] = next_w[j].x, sh.w[k + 1][r] = next_w[j].y, sh.w[k + 2][r] = next_w[j].z, sh.w[k + 3][r] = next_w[j].w;
    }
  };
  float acc[8][4] = {};
  load(0);
  for (int64_t k0 = 0; k0 < p.i; k0 += kFmaStep) {
    __syncthreads();
    store();
    __syncthreads();
    if (k0 + kFmaStep < p.i) load(k0 + kFmaStep);
#pragma unroll
    for (int k = 0; k < kFmaStep; ++k) {
      const float4 a = *reinterpret_cast<const float4*>(&sh.x[k][row0]), b = *reinterpret_cast<const float4*>(&sh.x[k][row0 + 4]);
      const float4 w = *reinterpret_cast<const float4*>(&sh.w[k][column0]);
      const float x[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}, v[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
      for (int r = 0; r < 8; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) acc[r][c] = fmaf(x[r], v[c], acc[r][c]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 8; ++r) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if (row0 + r < p.rows && p.column + column0 + c < p.o) p.out[(row0 + r) * p.out_stride + p.column + column0 + c] = acc[r][c];
    }
  }
}

__device__ __forceinline__ void tile_product(const TileProduct& p) {
  __shared__ __align__(16) TileShared shared;
  if (p.dtype == FLASHMLA_VALUE_BF16) tile_mma(p, shared);
  else tile_fma(p, shared);
}

// Grid (ceil(n / 64), ceil(o / 64), heads): the blocks of one weight tile run side by side.
__device__ __forceinline__ void linear_many(const MlaLinearParams& p) {
  const int64_t first = int64_t(blockIdx.x) * kTile, head = blockIdx.z;
  TileProduct tile;
  tile.x = p.x + first * p.x_stride + head * p.i;
  tile.x_stride = p.x_stride;
  tile.map = nullptr;
  tile.map_divisor = 1;
  tile.rows = int(min(int64_t(kTile), p.n - first));
  tile.dtype = p.weight_dtype;
  tile.weight = static_cast<const char*>(p.weight) + head * p.o * p.i * (p.weight_dtype == FLASHMLA_VALUE_BF16 ? 2 : 4);
  tile.o = p.o;
  tile.i = p.i;
  tile.column = int64_t(blockIdx.y) * kTile;
  tile.out = p.out + first * p.out_stride + head * p.o;
  tile.out_stride = p.out_stride;
  tile.vector = p.vector != 0;
  tile_product(tile);
}

}  // namespace flashmla
