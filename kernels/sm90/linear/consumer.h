// A consumer warpgroup: 64 rows of a tile, in every step or in every other one. x comes as f32 from shared memory and is split into three bf16
// parts in registers, which the tensor cores take as their first operand: as exact as in f32, and x is split once in a block.
#pragma once
#include "../../model/split.h"
#include "../ptx/wgmma_n128.h"
#include "config.h"

namespace flashmla::linear {

template <class C>
struct Sums {
  float of[C::kProducts][C::kWidth / 2];
};

// Steps turn, turn + turns, ... of the rows from `rows` on. Lane (g = lane / 4, t = lane % 4) of warp w brings to each product of 16 columns rows
// 16 w + g and that + 8, of columns 2t, 2t + 1 and those + 8.
template <class C>
__device__ __forceinline__ void consume(uint32_t base, int rows, int turn, int steps, Sums<C>& sums) {
  using namespace ptx;
  const int thread = threadIdx.x & 127, lane = thread & 31, g = lane >> 2, t = lane & 3;
  const uint32_t row = (rows + (thread >> 5) * 16 + g) * 256, place = row + (((t >> 1) ^ g << 1) << 4) + (t & 1) * 8;
#pragma unroll
  for (int n = 0; n < C::kProducts; ++n) {
#pragma unroll
    for (int j = 0; j < C::kWidth / 2; ++j) sums.of[n][j] = 0.f;
  }
  float2 x[4];              // rows g and g + 8 of the next product's first columns, then of those + 8
  uint32_t parts[2][3][4];  // of this product and of the one before, which may still be read
  for (int step = turn; step < steps; step += C::kTurns) {
    const int stage = step % C::kStages;
    const uint32_t ring = base + stage * C::kStageBytes;
    const auto load = [&](int k) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t at = ring + (place ^ (k * 4 + (j >> 1) * 2) << 4) + (j & 1) * 8 * 256;
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x[j].x), "=f"(x[j].y) : "r"(at));
      }
    };
    mbarrier_wait(base + C::kBarriers + 16 * stage, step / C::kStages & 1);
    load(0);
#pragma unroll
    for (int k = 0; k < kStep / 16; ++k) {
      wgmma_wait<1>();
      if (k == 1 && step >= C::kTurns && lane == 0) {  // all products with the stage before are done
        mbarrier_arrive(base + C::kBarriers + 16 * ((step - C::kTurns) % C::kStages) + 8);
      }
      auto& mine = parts[k & 1];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t pair[3];
        split_pair(x[j].x, x[j].y, pair);
#pragma unroll
        for (int part = 0; part < 3; ++part) mine[part][j] = pair[part];
      }
      if (k + 1 < kStep / 16) load(k + 1);
      wgmma_fence();
#pragma unroll
      for (int part = 2; part >= 0; --part) {  // the smallest first
#pragma unroll
        for (int n = 0; n < C::kProducts; ++n) {
          const uint64_t weights = descriptor(ring + C::kXBytes + n * C::kWidth * 128 + k * 32, 16, 1024);
          if constexpr (C::kWidth == 128) wgmma_n128(sums.of[n], mine[part], weights);
          else Wgmma<Bf16>::qk_rs(sums.of[n], mine[part], weights, 1);
        }
      }
      wgmma_commit();
    }
  }
  wgmma_wait<0>();
#pragma unroll
  for (int n = 0; n < C::kProducts; ++n) pin(sums.of[n]);
}

}  // namespace flashmla::linear
