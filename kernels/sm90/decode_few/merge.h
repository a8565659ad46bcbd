// Parts of a split row tile merged by the blocks that made them, in the order of ../decode/merge.h: part i takes in parts i + 1, i + 2, i + 4, ...
// and hands the sum to the part below.
//
// A part is handed over as its threads hold it, through memory that is filled with kNothing before: the reader waits until there is something
// else, and fills it with nothing again. Nothing but the data is waited for, so it takes one way through L2 and no fence.
#pragma once
#include "output.h"

namespace flashmla::decode_few {

template <int kTileRows>
constexpr int kHandedWords = Sums<kTileRows>::kWords + 2;  // of a thread: its values, maxima and sums

template <int kTileRows>
__device__ __forceinline__ float4* part_of(const MlaDecodeParams& p, int block) {
  return static_cast<float4*>(p.partial_out) + int64_t(block) * kHandedWords<kTileRows> * kConsumerThreads + threadIdx.x;
}

__device__ __forceinline__ float4 load_word(const float4* word) {
  float4 v;
  asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(word) : "memory");
  return v;
}
__device__ __forceinline__ bool is_there(const float4& v) {
  return max(max(__float_as_uint(v.x), __float_as_uint(v.y)), max(__float_as_uint(v.z), __float_as_uint(v.w))) != kNothing;
}

// All consumers.
template <int kTileRows>
__device__ __forceinline__ void hand_over(const MlaDecodeParams& p, int block, const Sums<kTileRows>& sums) {
  constexpr int kWords = Sums<kTileRows>::kWords;
  float4* part = part_of<kTileRows>(p, block);
#pragma unroll
  for (int w = 0; w < kWords; ++w) __stcg(part + w * kConsumerThreads, word_of(sums.o, w));
  __stcg(part + kWords * kConsumerThreads, make_float4(sums.m[0], sums.m[1], sums.m[2], sums.m[3]));
  __stcg(part + (kWords + 1) * kConsumerThreads, make_float4(sums.l[0], sums.l[1], sums.l[2], sums.l[3]));
}

// Adds the part of another block, when it is there. All consumers.
template <int kTileRows>
__device__ __forceinline__ void take_in(const MlaDecodeParams& p, int block, Sums<kTileRows>& sums) {
  constexpr int kWords = Sums<kTileRows>::kWords, kHanded = kHandedWords<kTileRows>;
  float4* part = part_of<kTileRows>(p, block);
  // What is written last is most likely there last.
  while (!__all_sync(0xffffffffu, is_there(load_word(part + (kHanded - 1) * kConsumerThreads)))) {
  }
  float4 word[kHanded];
  bool there;
  do {
    there = true;
#pragma unroll
    for (int w = 0; w < kHanded; ++w) word[w] = load_word(part + w * kConsumerThreads);
#pragma unroll
    for (int w = 0; w < kHanded; ++w) there &= is_there(word[w]);
  } while (!__all_sync(0xffffffffu, there));
  const float nothing = __uint_as_float(kNothing);
#pragma unroll
  for (int w = 0; w < kHanded; ++w) __stcg(part + w * kConsumerThreads, make_float4(nothing, nothing, nothing, nothing));
  const float4 &m = word[kWords], &l = word[kWords + 1];
  const float their_m[kColumns] = {m.x, m.y, m.z, m.w}, their_l[kColumns] = {l.x, l.y, l.z, l.w};
  sums.add(their_m, their_l, [&](int w) { return word[w]; });
}

}  // namespace flashmla::decode_few
