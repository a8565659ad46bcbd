// Parts of a split row tile merged by the blocks that made them, where a tile has few of them: no second kernel.
//
// 1. Parts 0 .. n - 1 of a tile belong to successive group workers. Part i takes in parts i + 1, i + 2, i + 4, ... as long as 2^k divides
//    i and they exist, then hands the sum to the part below; part 0 writes the rows. Who adds what to what depends on the lengths
//    alone, so results do not depend on timing.
// 2. A part is handed over as its threads hold it: accumulators in f32, the row's maximum and the thread's share of its sum.
// 3. A block waits for blocks of higher workers only. Those are lower blocks of the grid, so they run or have run when it does.
// 4. A block hands over at most once in a launch. Whoever takes a part clears its flag: they are all 0 between launches.
#pragma once
#include "config.h"

namespace flashmla::decode {

constexpr int kPartWords = 33;  // 16-byte words of a thread

__device__ __forceinline__ float4* part_of(const MlaDecodeParams& p, int block) {
  return static_cast<float4*>(p.partial_out) + int64_t(block) * kPartWords * kConsumerThreads + threadIdx.x;
}

// All consumers. live: whether this thread's warp has rows of the tile.
__device__ __forceinline__ void hand_over(const MlaDecodeParams& p, int block, bool live, const float (&o)[128],
                                          const float (&m)[2], const float (&l)[2]) {
  if (live) {
    float4* part = part_of(p, block);
#pragma unroll
    for (int i = 0; i < 32; ++i) __stcg(part + i * kConsumerThreads, make_float4(o[i * 4], o[i * 4 + 1], o[i * 4 + 2], o[i * 4 + 3]));
    __stcg(part + 32 * kConsumerThreads, make_float4(m[0], m[1], l[0], l[1]));
  }
  ptx::bar_sync(kBothConsumers, kConsumerThreads);
  if (threadIdx.x == 0) {
    __threadfence();
    asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(p.parts_ready + block) : "memory");
  }
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
  const float4 state = __ldcg(part + 32 * kConsumerThreads);
  float mine[2], theirs[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float other = r == 0 ? state.x : state.y, most = fmaxf(m[r], other), base = base_of(most);
    mine[r] = exp2_approx(m[r] - base);
    theirs[r] = exp2_approx(other - base);
    m[r] = most;
    l[r] = l[r] * mine[r] + (r == 0 ? state.z : state.w) * theirs[r];
  }
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const float4 v = __ldcg(part + i * kConsumerThreads);
    o[i * 4] = o[i * 4] * mine[0] + v.x * theirs[0];
    o[i * 4 + 1] = o[i * 4 + 1] * mine[0] + v.y * theirs[0];
    o[i * 4 + 2] = o[i * 4 + 2] * mine[1] + v.z * theirs[1];
    o[i * 4 + 3] = o[i * 4 + 3] * mine[1] + v.w * theirs[1];
  }
}

}  // namespace flashmla::decode
