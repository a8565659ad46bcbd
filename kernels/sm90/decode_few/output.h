// From two warpgroups' accumulators to memory.
//
// 1. Where the warpgroups share the blocks they add up what they have: each gives the other that one's half of the value columns, so that every
//    thread ends with a quarter of what the rows have: o [4][8], of its warpgroup's 256 columns. Where they share the rows a thread keeps
//    o [8][8], of all 512 columns.
// 2. A finished tile's rows go to out and lse. A part goes as its threads hold it to the partial buffers (for mla_combine_few, combine.h) or to
//    the block that merges it (merge.h).
#pragma once
#include "../decode/output.h"
#include "consumer.h"

namespace flashmla::decode_few {

// A thread's values in words of 16 bytes, four values of one query row each: word w is of row_of_column(w % 4), and of value columns c, c + 8,
// c + 64 and c + 72, with c = 128 * (w / 4) + 16 warp + (lane >> 2).
constexpr int kWords = 2 * kHalfTiles;  // of half of the columns

template <typename Values>
__device__ __forceinline__ auto& value_of(Values& o, int w, int i) {
  const int c = w % kColumns;
  return o[w / kColumns * 2 + (i >> 1)][(c >> 1) * 4 + (c & 1) + (i & 1) * 2];
}
template <typename Values>
__device__ __forceinline__ float4 word_of(const Values& o, int w) {
  return make_float4(value_of(o, w, 0), value_of(o, w, 1), value_of(o, w, 2), value_of(o, w, 3));
}

// What a thread has of a tile when its warpgroups have added up: value i of o[t] is of value column 64 t + 16 warp + (lane >> 2) + 8 * (i >> 1 & 1)
// of the thread's columns.
template <int kTileRows>
struct Sums {
  static constexpr int kHalves = by_rows(kTileRows) ? 2 : 1;
  static constexpr int kWords = kHalves * decode_few::kWords;
  float o[kHalves * kHalfTiles][8], m[kColumns], l[kColumns];

  // Adds other sums, relative to their own maxima.
  template <typename Read>
  __device__ __forceinline__ void add(const float (&their_m)[kColumns], const float (&their_l)[kColumns], const Read& read) {
    float mine[kColumns], theirs[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const float most = fmaxf(m[c], their_m[c]), base = base_of(most);
      mine[c] = exp2_approx(m[c] - base);
      theirs[c] = exp2_approx(their_m[c] - base);
      m[c] = most;
      l[c] = l[c] * mine[c] + their_l[c] * theirs[c];
    }
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const int c = w % kColumns;
      const float4 v = read(w);
      const float word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& mine_o = value_of(o, w, i);
        mine_o = mine_o * mine[c] + word[i] * theirs[c];
      }
    }
  }
};

// Both warpgroups' shares of a segment added up. All consumers.
__device__ __forceinline__ void add_up(SharedStorage<16>& sh, int wg, const float (&o)[8][8], const float (&m)[kColumns], float (&l)[kColumns],
                                       Sums<16>& sums) {
  const int warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31, thread = threadIdx.x & 127;
  ptx::bar_sync(decode::kBothConsumers, kConsumerThreads);  // what was here last has been read
#pragma unroll
  for (int w = 0; w < kWords; ++w) sh.exchange[wg][w][thread] = word_of(o, w + kWords);
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
#pragma unroll
    for (int d = 4; d < 32; d <<= 1) l[c] += __shfl_xor_sync(0xffffffffu, l[c], d);
    if (lane < 4) {
      sh.sums[wg][warp][row_of_column(c, lane)] = l[c];
      if (warp == 0) sh.tops[wg][0][row_of_column(c, lane)] = m[c];
    }
  }
  ptx::bar_sync(decode::kBothConsumers, kConsumerThreads);
  float their_m[kColumns], their_l[kColumns];
  const auto sum_of = [&](int w, int row) { return (sh.sums[w][0][row] + sh.sums[w][1][row]) + (sh.sums[w][2][row] + sh.sums[w][3][row]); };
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const int row = row_of_column(c, lane);
    sums.m[c] = m[c];
    sums.l[c] = sum_of(wg, row);
    their_m[c] = sh.tops[wg ^ 1][0][row];
    their_l[c] = sum_of(wg ^ 1, row);
  }
#pragma unroll
  for (int t = 0; t < kHalfTiles; ++t) {
#pragma unroll
    for (int i = 0; i < 8; ++i) sums.o[t][i] = o[t][i];
  }
  sums.add(their_m, their_l, [&](int w) { return sh.exchange[wg ^ 1][w][thread]; });
}

// The same where each has rows of its own: only the sums of the weights are shared out, over a warpgroup's threads.
__device__ __forceinline__ void add_up(SharedStorage<32>& sh, int wg, const float (&o)[8][8], const float (&m)[kColumns], float (&l)[kColumns],
                                       Sums<32>& sums) {
  const int warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31;
  ptx::bar_sync(kWarpgroup0 + wg, 128);  // what was here last has been read
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
#pragma unroll
    for (int d = 4; d < 32; d <<= 1) l[c] += __shfl_xor_sync(0xffffffffu, l[c], d);
    if (lane < 4) sh.sums[wg][warp][row_of_column(c, lane)] = l[c];
  }
  ptx::bar_sync(kWarpgroup0 + wg, 128);
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const int row = row_of_column(c, lane);
    sums.m[c] = m[c];
    sums.l[c] = (sh.sums[wg][0][row] + sh.sums[wg][1][row]) + (sh.sums[wg][2][row] + sh.sums[wg][3][row]);
  }
#pragma unroll
  for (int t = 0; t < 8; ++t) {
#pragma unroll
    for (int i = 0; i < 8; ++i) sums.o[t][i] = o[t][i];
  }
}

// 16-bit rows of half of the columns, turned in shared memory so that a store fills whole lines; all of a warpgroup.
template <typename T>
__device__ __forceinline__ void store_rows16(const float (*half)[8], const float (&factor)[kColumns], uint32_t area, int barrier, int rows,
                                             uint16_t* base) {
  const int warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31, row = ((lane >> 4) << 3) + (lane & 7);
  ptx::bar_sync(barrier, 128);  // what was here has been read
#pragma unroll
  for (int t = 0; t < kHalfTiles; ++t) {
    const float(&o)[8] = half[t];
    const uint32_t v[4] = {T::pack(o[0] * factor[0], o[1] * factor[1]), T::pack(o[2] * factor[0], o[3] * factor[1]),
                           T::pack(o[4] * factor[2], o[5] * factor[3]), T::pack(o[6] * factor[2], o[7] * factor[3])};
    ptx::stmatrix_x4_trans(decode::staged_chunk(area, row, t * 8 + warp * 2 + ((lane >> 3) & 1)), v);
  }
  ptx::bar_sync(barrier, 128);
#pragma unroll
  for (int i = 0; i < kRows / 4; ++i) {
    const int r = i * 4 + warp;
    if (r < rows) {
      *reinterpret_cast<uint4*>(base + r * kValueWidth + lane * 8) = ptx::load_shared16(decode::staged_chunk(area, r, lane));
    }
  }
}

// The same in f32, some tiles of 64 columns at a time: 16 rows whose 32-byte pieces are shuffled so that the four rows of a warp's store are in
// different banks.
template <int kTilesAtOnce>
__device__ __forceinline__ void store_rows32(const float (*half)[8], const float (&factor)[kColumns], uint32_t area, int barrier, int rows,
                                             float* base) {
  constexpr int kRowBytes = kTilesAtOnce * 64 * 4;
  const int warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31;
  const auto shuffled = [](int row, int column) { return column ^ ((row >> 1 & 3) << 3); };
#pragma unroll
  for (int first = 0; first < kHalfTiles; first += kTilesAtOnce) {
    ptx::bar_sync(barrier, 128);  // what was here has been read
#pragma unroll
    for (int t = 0; t < kTilesAtOnce; ++t) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int c = column_of(i), row = row_of_column(c, lane), column = t * 64 + warp * 16 + (lane >> 2) + ((i >> 1) & 1) * 8;
        ptx::store_shared4(area + row * kRowBytes + shuffled(row, column) * 4, half[first + t][i] * factor[c]);
      }
    }
    ptx::bar_sync(barrier, 128);
#pragma unroll
    for (int i = 0; i < kRows / 4; ++i) {
      const int r = i * 4 + warp;
#pragma unroll
      for (int column = lane * 4; column < kTilesAtOnce * 64; column += 128) {
        if (r < rows) {
          *reinterpret_cast<uint4*>(base + r * kValueWidth + first * 64 + column) = ptx::load_shared16(area + r * kRowBytes + shuffled(r, column) * 4);
        }
      }
    }
  }
}

// Writes the rows of a whole tile. All consumers.
template <int kTileRows>
__device__ __forceinline__ void write_rows(const MlaDecodeParams& p, SharedStorage<kTileRows>& sh, const Segment& seg, int wg, int first_row,
                                           const Sums<kTileRows>& sums) {
  constexpr bool kByRows = by_rows(kTileRows);
  const int warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31, before = first_row + (kByRows ? wg * kRows : 0);
  const int rows = seg.shape.s_q * p.h_q - before;
  const int64_t first = int64_t(seg.shape.query_start) * p.h_q + before;
  float factor[kColumns];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const int row = row_of_column(c, lane);
    factor[c] = inverse(sums.l[c]);
    if ((kByRows || wg == 0) && warp == 0 && lane < 4 && row < rows) p.lse[first + row] = natural_lse(sums.m[c], sums.l[c]);
  }
  const uint32_t area = ptx::smem_address(sh.exchange[kByRows ? wg : wg ^ 1]);
#pragma unroll
  for (int h = 0; h < sums.kHalves; ++h) {
    const float(*half)[8] = sums.o + h * kHalfTiles;
    const int64_t at = first * kValueWidth + (kByRows ? h : wg) * 256;
    if (p.out_dtype == FLASHMLA_F32) {
      store_rows32<kByRows ? 2 : 4>(half, factor, area, kWarpgroup0 + wg, rows, static_cast<float*>(p.out) + at);
    } else if (p.out_dtype == FLASHMLA_BF16) {
      store_rows16<Bf16>(half, factor, area, kWarpgroup0 + wg, rows, static_cast<uint16_t*>(p.out) + at);
    } else {
      store_rows16<F16>(half, factor, area, kWarpgroup0 + wg, rows, static_cast<uint16_t*>(p.out) + at);
    }
  }
}

// What 16 rows of a part are for mla_combine_few; a part of 32 is two of them. For each query row c of a thread its eight values in f16, 16 bytes, and the power of two that takes their scale
// back, as the exponent of a float32.
struct Part {
  uint4 words[kColumns][kConsumerThreads];
  uint8_t exponents[kConsumerThreads][kColumns];
};

// Value i = 0 .. 7 of those is of value column column_of_thread + column_of_value(i), its row is row_of_column(c).
__device__ __forceinline__ int column_of_thread(int thread) { return (thread >> 7) * (kValueWidth / 2) + ((thread >> 5) & 3) * 16 + ((thread & 31) >> 2); }
__device__ constexpr int column_of_value(int i) { return (i >> 1) * 64 + (i & 1) * 8; }

// A thread's values of query row c in half h of its columns as f16, and the exponent that takes their scale back.
template <int kTileRows>
__device__ __forceinline__ uint4 pack_values(const Sums<kTileRows>& sums, int h, int c, uint32_t& exponent) {
  const auto value = [&](int i) { return value_of(sums.o, h * kWords + (i >> 2) * kColumns + c, i & 3); };
  float largest = fabsf(value(0));
#pragma unroll
  for (int i = 1; i < 8; ++i) largest = fmaxf(largest, fabsf(value(i)));
  const decode::HalfScale scale(largest);
  const float factor = scale.factor();
  const auto pack = [&](int i) { return F16::pack(value(i) * factor, value(i + 1) * factor); };
  exponent = scale.exponent;
  return make_uint4(pack(0), pack(2), pack(4), pack(6));
}

// Writes a part to a slot of this tile; `rows` from the tile's first one on are there. All consumers.
template <int kTileRows>
__device__ __forceinline__ void write_part(const MlaDecodeParams& p, int slot, int rows, const Sums<kTileRows>& sums) {
  constexpr bool kByRows = by_rows(kTileRows);
  const int wg = threadIdx.x >> 7, lane = threadIdx.x & 31, before = kByRows ? wg * kRows : 0;
  Part& part = static_cast<Part*>(p.partial_out)[kByRows ? slot * 2 + wg : slot];
#pragma unroll
  for (int h = 0; h < sums.kHalves; ++h) {
    const int thread = kByRows ? h * 128 + (threadIdx.x & 127) : threadIdx.x;  // that has these columns of 16 rows
    uint32_t exponents = 0;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      uint32_t exponent;
      const uint4 values = pack_values(sums, h, c, exponent);
      if (before + row_of_column(c, lane) < rows) __stcg(&part.words[c][thread], values);
      exponents |= exponent << (8 * c);
    }
    __stcg(reinterpret_cast<uint32_t*>(part.exponents[thread]), exponents);
  }
  if ((kByRows ? threadIdx.x & 127 : threadIdx.x) >= 4) return;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) p.partial_lse[slot * kTileRows + before + row_of_column(c, lane)] = make_float2(sums.m[c], sums.l[c]);
}

}  // namespace flashmla::decode_few
