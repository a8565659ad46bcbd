// Parts of a split row tile merged by the blocks that made them, where a tile has few of them: no second kernel.
//
// 1. Parts 0 .. n - 1 of a tile belong to successive group workers. Part i takes in parts i + 1, i + 2, i + 4, ... as long as 2^k divides
//    i and they exist, then hands the sum to the part below; part 0 writes the rows. Who adds what to what depends on the lengths
//    alone, so results do not depend on timing.
// 2. A part is handed over as its threads hold it: of each of a thread's two rows its values in f16, scaled by a power of two for the largest, what
//    takes that back, the row's maximum and the thread's share of its sum. Half of the bytes of f32, and 2^-12 of the largest as the error.
// 3. A block waits for blocks of higher workers only. Those are lower blocks of the grid, so they run or have run when it does.
// 4. A block hands over at most once in a launch. Whoever takes a part clears its flag: they are all 0 between launches.
#pragma once
#include "output.h"

namespace flashmla::decode {

constexpr int kValueWords = 16, kPartWords = kValueWords + 2;  // 16-byte words of a thread

__device__ __forceinline__ float4* part_of(const MlaDecodeParams& p, int block) {
  return static_cast<float4*>(p.partial_out) + int64_t(block) * kPartWords * kConsumerThreads + threadIdx.x;
}

// All consumers. live: whether this thread's warp has rows of the tile.
__device__ __forceinline__ void hand_over(const MlaDecodeParams& p, int block, bool live, const float (&o)[128],
                                          const float (&m)[2], const float (&l)[2]) {
  if (live) {
    float4* part = part_of(p, block);
    float top[2] = {0.f, 0.f};
#pragma unroll
    for (int i = 0; i < 128; ++i) top[(i >> 1) & 1] = fmaxf(top[(i >> 1) & 1], fabsf(o[i]));
    const HalfScale scale[2] = {HalfScale(top[0]), HalfScale(top[1])};
    const float factor[2] = {scale[0].factor(), scale[1].factor()};
#pragma unroll
    for (int w = 0; w < kValueWords; ++w) {
      uint32_t v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = F16::pack(o[w * 8 + i * 2] * factor[i & 1], o[w * 8 + i * 2 + 1] * factor[i & 1]);
      __stcg(reinterpret_cast<uint4*>(part + w * kConsumerThreads), make_uint4(v[0], v[1], v[2], v[3]));
    }
    __stcg(part + kValueWords * kConsumerThreads, make_float4(m[0], m[1], l[0], l[1]));
    __stcg(part + (kValueWords + 1) * kConsumerThreads, make_float4(scale[0].back(), scale[1].back(), 0.f, 0.f));
  }
  ptx::bar_sync(kBothConsumers, kConsumerThreads);
  if (threadIdx.x == 0) asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(p.parts_ready + block) : "memory");
}

// Adds the part of another block to this one's, when it is there. All consumers.
__device__ __forceinline__ void take_in(const MlaDecodeParams& p, int block, bool live, float (&o)[128], float (&m)[2],
                                        float (&l)[2]) {
  if (threadIdx.x == 0) {
    uint32_t ready;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(ready) : "l"(p.parts_ready + block) : "memory");
    } while (ready == 0);
    p.parts_ready[block] = 0;
  }
  ptx::bar_sync(kBothConsumers, kConsumerThreads);
  if (!live) return;
  const float4* part = part_of(p, block);
  const float4 state = __ldcg(part + kValueWords * kConsumerThreads), back = __ldcg(part + (kValueWords + 1) * kConsumerThreads);
  float mine[2], theirs[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float other = r == 0 ? state.x : state.y, most = fmaxf(m[r], other), base = base_of(most);
    mine[r] = exp2_approx(m[r] - base);
    theirs[r] = exp2_approx(other - base);
    m[r] = most;
    l[r] = l[r] * mine[r] + (r == 0 ? state.z : state.w) * theirs[r];
    theirs[r] *= r == 0 ? back.x : back.y;
  }
#pragma unroll
  for (int w = 0; w < kValueWords; ++w) {
    const uint4 word = __ldcg(reinterpret_cast<const uint4*>(part + w * kConsumerThreads));
    const uint32_t v[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 two = __half22float2(*reinterpret_cast<const __half2*>(&v[i]));
      o[w * 8 + i * 2] = o[w * 8 + i * 2] * mine[i & 1] + two.x * theirs[i & 1];
      o[w * 8 + i * 2 + 1] = o[w * 8 + i * 2 + 1] * mine[i & 1] + two.y * theirs[i & 1];
    }
  }
}

}  // namespace flashmla::decode
