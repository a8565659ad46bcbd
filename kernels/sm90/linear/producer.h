// The loading warpgroup: weights by the copy engine, as bf16 in boxes of 64 x 64; x as f32 by each thread, 16 bytes a copy, so that rows may come
// from anywhere. Zeros where columns end. What stands in rows past the end is of no matter: they are never written.
#pragma once
#include "../../model/tile_product.h"
#include "../ptx/tma.h"
#include "config.h"

namespace flashmla::linear {

// Steps [first, last) of the tile, through the ring at `base`. `thread`: 0 to 127.
template <class C>
__device__ __forceinline__ void produce(const TileProduct& p, uint32_t base, int thread, int first, int last) {
  using namespace ptx;
  constexpr int kCopies = C::kRows / 8, kBoxes = C::kColumns / kStep, kBoxBytes = kStep * kStep * 2;
  static_assert(kBoxes <= 4);
  const int box = thread >> 5;
  const bool copies_weights = (thread & 31) == 0 && box < kBoxes;
  const bool copies_up = C::kGated && box >= kBoxes / 2;
  const void* map = copies_up ? p.up_map : p.weight_map;
  const int first_row = int(p.weight_row + p.column) + (copies_up ? box - kBoxes / 2 : box) * kStep;
  if (copies_weights) acquire_map(map);
  const auto barrier_of = [&](int step) { return base + C::kBarriers + 16 * ((step - first) % C::kStages); };
  const auto stage_of = [&](int step) { return base + (step - first) % C::kStages * C::kStageBytes; };
  const auto weights = [&](int step) {
    if (!copies_weights) return;
    if (box == 0) mbarrier_expect_tx(barrier_of(step), C::kWeightBytes);
    const uint32_t target = stage_of(step) + C::kXBytes + box * kBoxBytes;
    tma_load_2d(target, map, barrier_of(step), step * kStep, first_row);
  };
  // A thread copies the same 16 bytes of every eighth row of x: their place in a row of shared memory depends on the row's number modulo 8.
  const int row = thread >> 4, chunk = thread & 15;
  const uint32_t place = row * 256 + ((chunk ^ (row & 7) << 1) << 4);
  const int copies = (p.rows - row + 7) / 8;
  const auto rows_of_x = [&](int step) {
    const int64_t k = int64_t(step) * kStep + chunk * 4;
    const uint32_t bytes = k < p.i ? 16 : 0;
#pragma unroll
    for (int j = 0; j < kCopies; j += 4) {
      if (j >= copies) break;
      const float* source[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        asm volatile("ld.shared.b64 %0, [%1];" : "=l"(source[e]) : "r"(base + C::kRowPointers + 8 * (row + 8 * (j + e))));
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (j + e < copies) cp_async16(stage_of(step) + place + (j + e) * 2048, bytes ? source[e] + k : p.x, bytes);
      }
    }
  };
  // The weights of the first steps are asked for before anything is known of the rows.
  const int ahead = min(last, first + C::kStages);
  for (int step = first; step < ahead; ++step) weights(step);
  for (int r = thread; r < p.rows; r += 128) {
    asm volatile("st.shared.b64 [%0], %1;" ::"r"(base + C::kRowPointers + 8 * r), "l"(p.row(r)) : "memory");
  }
  bar_sync(1, 128);
  for (int step = first; step < last; ++step) {
    const int at = step - first;
    if (at >= C::kStages) {
      mbarrier_wait(barrier_of(step) + 8, (at / C::kStages - 1) & 1);
      weights(step);
    }
    rows_of_x(step);
    cp_async_arrive(barrier_of(step));
  }
}

}  // namespace flashmla::linear
