// A tile of a product with many rows: 64 x 64 by a block of 128 threads, or 64 x 128 with bf16 weights by one of 256.
//
// bf16 weights: tensor cores. x is split into three bf16 parts, x = hi + mid + lo to 24 bits, so the product is as exact as in f32.
// f32 weights: plain multiply-adds, 8 x 4 outputs a thread.
// 1. The next step's x and weights are loaded to registers while the step in shared memory is multiplied.
// 2. Rows and columns past the end are zeros and never written.
#pragma once
#include "dot.h"
#include "mma.h"
#include "split.h"
#include "tile_product.h"

namespace flashmla {

constexpr int kTile = 64, kWideTile = 128;

// Four values from `k` on, zeros past `n`.
__device__ __forceinline__ float4 load_four(const float* row, int64_t k, int64_t n, bool vector) {
  if (vector && k + 4 <= n) return *reinterpret_cast<const float4*>(row + k);
  return make_float4(k < n ? row[k] : 0.f, k + 1 < n ? row[k + 1] : 0.f, k + 2 < n ? row[k + 2] : 0.f, k + 3 < n ? row[k + 3] : 0.f);
}

constexpr int kMmaStep = 32, kMmaStride = kMmaStep + 8;  // the padding keeps fragments free of bank conflicts
constexpr int kFmaStep = 16, kFmaStride = kTile + 4;

template <int kColumns>
struct MmaShared {
  uint16_t x[3][kTile][kMmaStride];
  uint16_t w[kColumns][kMmaStride];
};
struct FmaShared {
  float x[kFmaStep][kFmaStride];
  float w[kFmaStep][kFmaStride];
};

// A warp takes 32 rows and 32 columns.
template <int kColumns>
__device__ __forceinline__ void tile_mma(const TileProduct& p, MmaShared<kColumns>& sh) {
  constexpr int kSide = kColumns / 32, kThreads = kTile / 32 * kSide * 32, kProducts = 4;
  constexpr int kRowLoads = kTile * 8 / kThreads, kWeightLoads = kColumns * 4 / kThreads;
  static_assert(kMmaStep == 32 && kRowLoads * kThreads == kTile * 8 && kWeightLoads * kThreads == kColumns * 4);
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31, g = lane >> 2, t = lane & 3;
  const int row0 = warp / kSide * 32, column0 = warp % kSide * 32;
  float4 next_x[kRowLoads];
  uint4 next_w[kWeightLoads];
  const auto load = [&](int64_t k0) {
#pragma unroll
    for (int j = 0; j < kRowLoads; ++j) {
      const int r = (thread >> 3) + kThreads / 8 * j;
      next_x[j] = r < p.rows ? load_four(p.row(r), k0 + (thread & 7) * 4, p.i, p.vector) : make_float4(0.f, 0.f, 0.f, 0.f);
    }
#pragma unroll
    for (int j = 0; j < kWeightLoads; ++j) {
      const int64_t c = p.column + (thread >> 2) + kThreads / 4 * j, k = k0 + (thread & 3) * 8;
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
    for (int j = 0; j < kRowLoads; ++j) {
      uint32_t low[3], high[3];
      split_pair(next_x[j].x, next_x[j].y, low);
      split_pair(next_x[j].z, next_x[j].w, high);
#pragma unroll
      for (int part = 0; part < 3; ++part) {
        *reinterpret_cast<uint2*>(&sh.x[part][(thread >> 3) + kThreads / 8 * j][(thread & 7) * 4]) = make_uint2(low[part], high[part]);
      }
    }
#pragma unroll
    for (int j = 0; j < kWeightLoads; ++j) *reinterpret_cast<uint4*>(&sh.w[(thread >> 2) + kThreads / 4 * j][(thread & 3) * 8]) = next_w[j];
  };
  float acc[2][kProducts][4] = {};
  load(0);
  for (int64_t k0 = 0; k0 < p.i; k0 += kMmaStep) {
    __syncthreads();
    store();
    __syncthreads();
    if (k0 + kMmaStep < p.i) load(k0 + kMmaStep);
#pragma unroll
    for (int k = 0; k < kMmaStep; k += 16) {
      uint32_t b[kProducts / 2][4];  // of two products each
#pragma unroll
      for (int n = 0; n < kProducts / 2; ++n) {
        load_matrices(b[n], &sh.w[column0 + n * 16 + (lane >> 4) * 8 + (lane & 7)][k + (lane >> 3 & 1) * 8]);
      }
#pragma unroll
      for (int part = 2; part >= 0; --part) {  // the smallest first
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          uint32_t a[4];
          load_matrices(a, &sh.x[part][row0 + m * 16 + (lane & 15)][k + (lane >> 4) * 8]);
#pragma unroll
          for (int n = 0; n < kProducts; ++n) {
            const uint32_t of[2] = {b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]};
            mma_bf16(acc[m][n], a, of);
          }
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < kProducts; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int r = row0 + m * 16 + g + (e >> 1) * 8;
        const int64_t c = p.column + column0 + n * 8 + t * 2 + (e & 1);
        if (r < p.rows && c < p.o) put(p.out + r * p.out_stride + c, acc[m][n][e], p.add);
      }
    }
  }
}

__device__ __forceinline__ void tile_fma(const TileProduct& p, FmaShared& sh) {
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
      if (row0 + r < p.rows && p.column + column0 + c < p.o) put(p.out + (row0 + r) * p.out_stride + p.column + column0 + c, acc[r][c], p.add);
    }
  }
}

__device__ __forceinline__ void tile_product(const TileProduct& p) {
  __shared__ __align__(16) union {
    MmaShared<kTile> mma;
    FmaShared fma;
  } shared;
  if (p.dtype == FLASHMLA_VALUE_BF16) tile_mma(p, shared.mma);
  else tile_fma(p, shared.fma);
}

// Grid (ceil(n / 64), ceil(o / 64), heads), 128 threads.
__device__ __forceinline__ void linear_many(const MlaLinearParams& p) { tile_product(tile_of(p, blockIdx.x, kTile, blockIdx.y, kTile)); }

// bf16 weights, with twice the columns: each value of x that is loaded is used twice as often. Grid (ceil(n / 64), ceil(o / 128), heads), 256 threads.
__device__ __forceinline__ void linear_half(const MlaLinearParams& p) {
  __shared__ __align__(16) MmaShared<kWideTile> shared;
  tile_mma(tile_of(p, blockIdx.x, kTile, blockIdx.y, kWideTile), shared);
}

}  // namespace flashmla
