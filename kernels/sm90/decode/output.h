// From accumulators to memory: a finished row tile to out and lse, a part of one to the partial buffers.
//
// 1. The warpgroups add their shares of the row sums; for a part they also find each row's largest value.
// 2. A part of many rows goes out in f16, each row scaled by a power of two so that its largest value is in [2^14, 2^15): half of the
//    bytes of f32, and 2^-12 of that value as the error. The factor that takes the scale back goes beside the row's log-sum-exp.
// 3. A warp's accumulators hold two neighbouring columns a lane; four lanes trade them for eight, so that a store fills whole sectors.
#pragma once
#include "config.h"

namespace flashmla::decode {

// Four lanes with words v[0..3] each; afterwards lane i of them has word i of all four, in lane order.
__device__ __forceinline__ void transpose_quad(uint32_t (&v)[4], int lane) {
  const bool odd = lane & 1, high = lane & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? v[i] : v[i + 1], 1);
    (odd ? v[i] : v[i + 1]) = got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, high ? v[i] : v[i + 2], 2);
    (high ? v[i] : v[i + 2]) = got;
  }
}

// This warpgroup's 256 columns of the two rows r = 0, 1 of each lane, times their factors.
__device__ __forceinline__ void store_rows(uint16_t* (&base)[2], const bool (&live)[2], const float (&factor)[2], bool bf16,
                                           const float (&o)[128], int lane) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int j = 0; j < 32; j += 4) {
      uint32_t v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float lo = o[(j + i) * 4 + r * 2] * factor[r], hi = o[(j + i) * 4 + r * 2 + 1] * factor[r];
        v[i] = bf16 ? Bf16::pack(lo, hi) : F16::pack(lo, hi);
      }
      transpose_quad(v, lane);
      if (live[r]) *reinterpret_cast<uint4*>(base[r] + j * 8 + (lane & 3) * 8) = make_uint4(v[0], v[1], v[2], v[3]);
    }
  }
}

// The same in f32, in little code: two columns a lane as they are. Trading them first took 6500 cycles for 16 rows instead of 2650.
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

// Writes a segment's rows, of a whole tile or of a part: O (not normalized), the maximum m and this warpgroup's share l of the sum of
// each row.
__device__ __forceinline__ void write_segment(const MlaDecodeParams& p, SharedStorage& sh, const Segment& seg, bool whole, int wg,
                                              int worker, int first_row, const float (&o)[128], const float (&m)[2], float (&l)[2]) {
  const int warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31;
  const bool halves = !whole && parts_in_halves(p);
  float top[2] = {0.f, 0.f};
  if (halves) {
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
  // Exchanged through the arrays of maxima and factors, which are idle between segments.
  float* sums = wg == 0 ? sh.s0 : sh.s1;
  float* tops = wg == 0 ? sh.m0 : sh.m1;
  ptx::bar_sync(kBothConsumers, 256);  // nobody still reads a factor
  if ((lane & 3) == 0) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sums[warp * 16 + r * 8 + (lane >> 2)] = l[r];
      tops[warp * 16 + r * 8 + (lane >> 2)] = top[r];
    }
  }
  ptx::bar_sync(kBothConsumers, 256);
  bool live[2];
  float factor[2];
  int64_t row_of[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int tile_row = warp * 16 + r * 8 + (lane >> 2), row = first_row + tile_row;
    const float sum = l[r] + (wg == 0 ? sh.s1 : sh.s0)[tile_row];
    const float lse2 = sum > 0.f ? m[r] + __log2f(sum) : -INFINITY;
    const bool writes_lse = wg == 0 && (lane & 3) == 0;
    live[r] = row < seg.shape.s_q * p.h_q;
    factor[r] = sum > 0.f ? __fdividef(1.f, sum) : 0.f;
    if (whole) {
      row_of[r] = int64_t(seg.shape.query_start) * p.h_q + row;
      if (live[r] && writes_lse) p.lse[row_of[r]] = lse2 * kLn2;
    } else {
      row_of[r] = partial_slot(worker, seg.lo == 0) * kRows + tile_row;
      float back = 1.f;
      if (halves) {
        const float largest = fmaxf(top[r], (wg == 0 ? sh.m1 : sh.m0)[tile_row]) * factor[r];
        // Powers of two by their exponents. A row of zeros, or of values below 2^-100, is scaled as one of 2^-100.
        const int exponent = max(int(__float_as_uint(largest) >> 23) - 127, -100);
        factor[r] *= __uint_as_float(uint32_t(127 + 14 - exponent) << 23);
        back = __uint_as_float(uint32_t(127 - 14 + exponent) << 23);
      }
      if (live[r] && writes_lse) p.partial_lse[row_of[r]] = make_float2(lse2, back);
    }
  }
  if (!__any_sync(0xffffffffu, live[0])) return;  // rows of a warp are live from the first on
  if (whole ? p.out_dtype == FLASHMLA_F32 : !halves) {
    float* out = static_cast<float*>(whole ? p.out : p.partial_out) + wg * 256;
    float* base[2] = {out + row_of[0] * kValueWidth, out + row_of[1] * kValueWidth};
    store_rows(base, live, factor, o, lane);
  } else {
    uint16_t* out = static_cast<uint16_t*>(whole ? p.out : p.partial_out) + wg * 256;
    uint16_t* base[2] = {out + row_of[0] * kValueWidth, out + row_of[1] * kValueWidth};
    store_rows(base, live, factor, whole && p.out_dtype == FLASHMLA_BF16, o, lane);
  }
}

}  // namespace flashmla::decode
