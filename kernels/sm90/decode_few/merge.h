// Parts of a split row tile merged by the blocks that made them, in the order of ../decode/merge.h: part i takes in parts i + 1, i + 2, i + 4, ...
// and hands the sum to the part below.
//
// A part is handed over as its threads hold it, its last word when the others are seen by all: memory is filled with kNothing before, and the reader waits until
// there is something else, and fills it with nothing again.
#pragma once
#include "../../common/discard.h"
#include "output.h"

namespace flashmla::decode_few {

// What a thread hands over, in words of 16 bytes: eight values of a query row each in f16, as in Part; the exponents of those; maxima; sums.
template <int kTileRows>
constexpr int kValueWords = Sums<kTileRows>::kHalves * kColumns;
template <int kTileRows>
constexpr int kHandedWords = kValueWords<kTileRows> + 3;

template <int kTileRows>
__device__ __forceinline__ uint4* part_of(const MlaDecodeParams& p, int block) {
  return static_cast<uint4*>(p.partial_out) + int64_t(block) * kHandedWords<kTileRows> * kConsumerThreads + threadIdx.x;
}

__device__ __forceinline__ uint4 load_word(const uint4* word) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(word) : "memory");
  return v;
}
__device__ __forceinline__ bool is_there(const uint4& v) { return max(max(v.x, v.y), max(v.z, v.w)) != kNothing; }
__device__ __forceinline__ uint4 bits_of(const float (&v)[kColumns]) {
  return make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3]));
}

// All consumers.
template <int kTileRows>
__device__ __forceinline__ void hand_over(const MlaDecodeParams& p, int block, const Sums<kTileRows>& sums) {
  constexpr int kWords = kValueWords<kTileRows>;
  uint4* part = part_of<kTileRows>(p, block);
  uint32_t exponents[2] = {0, 0};  // of each half of the columns, a byte a row
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    uint32_t exponent;
    __stcg(part + w * kConsumerThreads, pack_values(sums, w / kColumns, w % kColumns, exponent));
    exponents[w / kColumns] |= exponent << (8 * (w % kColumns));
  }
  __stcg(part + kWords * kConsumerThreads, make_uint4(exponents[0], exponents[1], 0, 0));
  __stcg(part + (kWords + 1) * kConsumerThreads, bits_of(sums.m));
  __threadfence();
  __stcg(part + (kWords + 2) * kConsumerThreads, bits_of(sums.l));
}

// Adds the part of another block, when it is there. All consumers.
template <int kTileRows>
__device__ __forceinline__ void take_in(const MlaDecodeParams& p, int block, Sums<kTileRows>& sums) {
  constexpr int kWords = kValueWords<kTileRows>, kHanded = kHandedWords<kTileRows>;
  uint4* part = part_of<kTileRows>(p, block);
  uint4 word[kHanded];
  do {
    word[kHanded - 1] = load_word(part + (kHanded - 1) * kConsumerThreads);
  } while (!__all_sync(0xffffffffu, is_there(word[kHanded - 1])));
  __threadfence();
#pragma unroll
  for (int w = 0; w < kHanded - 1; ++w) word[w] = load_word(part + w * kConsumerThreads);
  __stcg(part + (kHanded - 1) * kConsumerThreads, make_uint4(kNothing, kNothing, kNothing, kNothing));
  const auto floats = [](const uint4& v) { return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)); };
  const float4 m = floats(word[kWords + 1]), l = floats(word[kWords + 2]);
  const float their_m[kColumns] = {m.x, m.y, m.z, m.w}, their_l[kColumns] = {l.x, l.y, l.z, l.w};
  sums.add(their_m, their_l, [&](int w) {
    const int h = w / decode_few::kWords, c = w % kColumns;
    const uint4& values = word[h * kColumns + c];
    const bool upper = w / kColumns % 2 != 0;
    const uint32_t pairs[2] = {upper ? values.z : values.x, upper ? values.w : values.y};
    const float back = __uint_as_float(((h == 0 ? word[kWords].x : word[kWords].y) >> (8 * c) & 0xff) << 23);
    const float2 a = __half22float2(*reinterpret_cast<const __half2*>(&pairs[0])), b = __half22float2(*reinterpret_cast<const __half2*>(&pairs[1]));
    return make_float4(a.x * back, a.y * back, b.x * back, b.y * back);
  });
}

// Drops what a block has taken in of another's part, but for the last word, once it is in what has been written. Each warp has read its own lines.
template <int kTileRows>
__device__ __forceinline__ void discard_part(const MlaDecodeParams& p, int block) {
  if (threadIdx.x % kLineWords != 0) return;
#pragma unroll 1
  for (int w = 0; w < kHandedWords<kTileRows> - 1; ++w) discard_line(part_of<kTileRows>(p, block) + w * kConsumerThreads);
}

}  // namespace flashmla::decode_few
