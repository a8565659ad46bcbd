// From accumulators to memory: a finished row tile to out and lse, a part of one to the partial buffers.
//
// 1. The warpgroups add their shares of the row sums; for a part they also find each row's largest value.
// 2. A part of many rows goes out in f16, each row scaled by a power of two so that its largest value is in [2^14, 2^15): half of the
//    bytes of f32, and 2^-12 of that value as the error. The factor that takes the scale back goes beside the row's log-sum-exp.
// 3. Rows of 16-bit values are turned in shared memory, where the warpgroup's half of the last KV block was, so that a store fills whole
//    lines. This code runs once a tile, and fetching it is what it costs: little of it and not the fewest cycles is the aim.
#pragma once
#include "config.h"

namespace flashmla::decode {

// Where 8 columns of one of a warp's 16 rows are staged.
constexpr int kStagedBytes = 8192;
__device__ __forceinline__ uint32_t staged_chunk(uint32_t area, int row, int chunk) { return area + row * 512 + ((chunk ^ (row & 7)) << 4); }

// A warp's 16 rows of 256 columns into 8 KiB of shared memory, times the factors of the thread's two rows.
template <bool kBf16>
__device__ __forceinline__ void stage_rows(uint32_t area, const float (&factor)[2], const float (&o)[128], int lane) {
  const int row = lane & 15;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    uint32_t v[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float lo = o[i * 8 + k * 2] * factor[k & 1], hi = o[i * 8 + k * 2 + 1] * factor[k & 1];
      v[k] = kBf16 ? Bf16::pack(lo, hi) : F16::pack(lo, hi);
    }
    ptx::stmatrix_x4(staged_chunk(area, row, i * 2 + (lane >> 4)), v);
  }
}

// From there to memory, `rows` of them; `base` is the first row's first column.
__device__ __forceinline__ void store_staged(uint32_t area, uint16_t* base, int rows, int lane) {
  __syncwarp();
#pragma unroll 1
  for (int first = 0; first < rows; first += 4) {
    uint4 v[4];
#pragma unroll
    for (int u = 0; u < 4; ++u) v[u] = ptx::load_shared16(staged_chunk(area, first + u, lane));
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      if (first + u < rows) *reinterpret_cast<uint4*>(base + (first + u) * kValueWidth + lane * 8) = v[u];
    }
  }
}

// This warpgroup's 256 columns of the two rows r = 0, 1 of each lane in f32, times their factors: two columns a lane as they are.
__device__ __forceinline__ void store_rows(float* (&base)[2], const bool (&live)[2], const float (&factor)[2], const float (&o)[128],
                                           int lane) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (!live[r]) continue;
    float* row = base[r] + (lane & 3) * 2;
#pragma unroll
    for (int j = 0; j < 32; ++j) {
      *reinterpret_cast<float2*>(row + j * 8) = make_float2(o[j * 4 + r * 2] * factor[r], o[j * 4 + r * 2 + 1] * factor[r]);
    }
  }
}

// The rows of a sequence without tokens: zeros, and minus infinity.
__device__ __forceinline__ void write_empty(const MlaDecodeParams& p, const Segment& seg, int wg, int first_row) {
  const int warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31, words = p.out_dtype == FLASHMLA_F32 ? 128 : 64;
  const int rows = min(seg.shape.s_q * p.h_q - first_row, kRows);
  const int64_t out_row = int64_t(seg.shape.query_start) * p.h_q + first_row;
  uint4* out = static_cast<uint4*>(p.out) + out_row * words;
#pragma unroll 1
  for (int i = (wg * 4 + warp) * 32 + lane; i < rows * words; i += 256) out[i] = make_uint4(0, 0, 0, 0);
  if (threadIdx.x < rows) p.lse[out_row + threadIdx.x] = -INFINITY;
}

// Powers of two that take values of which the largest is given to [2^14, 2^15) and back: for f16. Zeros, or values below 2^-100, are scaled as if
// that were the largest.
struct HalfScale {
  uint32_t exponent;  // of what takes them back, as a float32 has it
  __device__ __forceinline__ explicit HalfScale(float largest) : exponent(max(__float_as_uint(largest) >> 23, 27u) - 14) {}
  __device__ __forceinline__ float factor() const { return __uint_as_float((254 - exponent) << 23); }
  __device__ __forceinline__ float back() const { return __uint_as_float(exponent << 23); }
};

// What becomes of a thread's two rows: the factor that normalizes them, their log-sum-exp in base 2, and what takes a part's scale back.
struct RowFactors {
  float normalize[2], lse2[2], back[2];
};

// From the maximum m and this warpgroup's share l of the sum of each row; both warpgroups. scales: also by a power of two, for f16.
__device__ __forceinline__ RowFactors finish_rows(SharedStorage& sh, int wg, bool scales, const float (&o)[128], const float (&m)[2],
                                                  float (&l)[2]) {
  const int warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31;
  float top[2] = {0.f, 0.f};
  if (scales) {
#pragma unroll
    for (int i = 0; i < 128; ++i) top[(i >> 1) & 1] = fmaxf(top[(i >> 1) & 1], fabsf(o[i]));
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int d = 1; d < 4; d <<= 1) {
      l[r] += __shfl_xor_sync(0xffffffffu, l[r], d);
      top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], d));
    }
  }
  // Exchanged through the places of maxima and factors, which are idle between segments.
  ptx::bar_sync(kBothConsumers, 256);  // nobody still reads a factor
  if ((lane & 3) == 0) {
#pragma unroll
    for (int r = 0; r < 2; ++r) sh.steps[wg][warp * 16 + r * 8 + (lane >> 2)] = make_float2(top[r], l[r]);
  }
  ptx::bar_sync(kBothConsumers, 256);
  RowFactors rows;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float2 other = sh.steps[wg ^ 1][warp * 16 + r * 8 + (lane >> 2)];
    const float sum = l[r] + other.y;
    rows.lse2[r] = sum > 0.f ? m[r] + __log2f(sum) : -INFINITY;
    rows.normalize[r] = inverse(sum);
    rows.back[r] = 1.f;
    if (scales) {
      const float largest = fmaxf(top[r], other.x) * rows.normalize[r];
      const HalfScale scale(largest);
      rows.normalize[r] *= scale.factor();
      rows.back[r] = scale.back();
    }
  }
  return rows;
}

// Writes a segment's rows, of a whole tile or of a part: O (not normalized), the maximum m and this warpgroup's share l of the sum of
// each row. `staging`: 32 KiB of shared memory of this warpgroup. Whether it was used.
__device__ __forceinline__ bool write_segment(const MlaDecodeParams& p, SharedStorage& sh, const Segment& seg, bool whole, int wg,
                                              int worker, int first_row, uint32_t staging, const float (&o)[128], const float (&m)[2],
                                              float (&l)[2]) {
  const int warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31;
  const bool halves = !whole && parts_in_halves(p);
  const RowFactors finished = finish_rows(sh, wg, halves, o, m, l);
  const float (&factor)[2] = finished.normalize;
  bool live[2];
  int64_t row_of[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int tile_row = warp * 16 + r * 8 + (lane >> 2), row = first_row + tile_row;
    const bool writes_lse = wg == 0 && (lane & 3) == 0;
    live[r] = row < seg.shape.s_q * p.h_q;
    row_of[r] = whole ? int64_t(seg.shape.query_start) * p.h_q + row : partial_slot(worker, seg.lo == 0) * kRows + tile_row;
    if (!live[r] || !writes_lse) continue;
    if (whole) {
      p.lse[row_of[r]] = finished.lse2[r] * kLn2;
    } else {
      p.partial_lse[row_of[r]] = make_float2(finished.lse2[r], finished.back[r]);
    }
  }
  const int rows = min(seg.shape.s_q * p.h_q - first_row - warp * 16, 16);  // of this warp
  if (rows <= 0) return false;
  if (whole ? p.out_dtype == FLASHMLA_F32 : !halves) {
    float* out = static_cast<float*>(whole ? p.out : p.partial_out) + wg * 256;
    float* base[2] = {out + row_of[0] * kValueWidth, out + row_of[1] * kValueWidth};
    store_rows(base, live, factor, o, lane);
    return false;
  }
  const uint32_t area = staging + warp * kStagedBytes;
  if (whole && p.out_dtype == FLASHMLA_BF16) {
    stage_rows<true>(area, factor, o, lane);
  } else {
    stage_rows<false>(area, factor, o, lane);
  }
  const int64_t first = whole ? int64_t(seg.shape.query_start) * p.h_q + first_row + warp * 16
                              : int64_t(partial_slot(worker, seg.lo == 0)) * kRows + warp * 16;
  store_staged(area, static_cast<uint16_t*>(whole ? p.out : p.partial_out) + first * kValueWidth + wg * 256, rows, lane);
  return true;
}

}  // namespace flashmla::decode
