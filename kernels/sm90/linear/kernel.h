// A product of many rows with bf16 weights on Hopper's tensor cores, as exact as in f32: out = x Wᵀ, x f32.
//
// 1. A warpgroup loads steps of 64 columns of x and of the weights into a ring (producer.h).
// 2. Two warpgroups split x into three bf16 parts in registers and multiply each with the weights (consumer.h): the parts of the next 16
//    columns are made while the tensor cores work on these. Each has 64 rows, or every other step.
// 3. Where there are too few tiles for the device, the blocks of a cluster share a tile's columns of x, and add up through shared memory (output.h).
// Gated: out = silu(x Wᵀ) * (x Uᵀ). A tile has the same outputs of both weights, beside each other.
#pragma once
#include "consumer.h"
#include "output.h"
#include "producer.h"

namespace flashmla::linear {

template <class C>
__device__ __forceinline__ void multiply(const TileProduct& p, uint8_t* raw) {
  using namespace ptx;
  const uint32_t base = (smem_address(raw) + 1023) & ~1023u;
  const int rank = cluster_rank(), blocks = cluster_blocks();
  const int steps = int((p.i + kStep - 1) / kStep);
  const int first = int(int64_t(steps) * rank / blocks), last = int(int64_t(steps) * (rank + 1) / blocks);
  if (threadIdx.x == 0) {
    for (int s = 0; s < C::kStages; ++s) {
      mbarrier_init(base + C::kBarriers + 16 * s, 128 + 1);
      mbarrier_init(base + C::kBarriers + 16 * s + 8, C::kConsumers / 32 / C::kTurns);
    }
    fence_barrier_init();
  }
  __syncthreads();
  const int group = int(__shfl_sync(0xffffffffu, threadIdx.x >> 7, 0));
  if (group == 2) {
    if constexpr (C::kShiftsRegisters) drop_registers<40>();
    produce<C>(p, base, threadIdx.x & 127, first, last);
  } else {
    if constexpr (C::kShiftsRegisters) raise_registers<232>();
    const int rows = C::kTurns == 1 ? group * kGroupRows : 0, turn = C::kTurns == 1 ? 0 : group;
    Sums<C> sums;
    consume<C>(base, rows, turn, last - first, sums);
    if (C::kTurns == 1 && blocks == 1) write_sums<C>(p, rows, sums);
    else stage_sums<C>(base, rows, turn, sums);
  }
  if (blocks == 1) {
    if constexpr (C::kTurns > 1) {
      __syncthreads();
      add_up<C, 1>(p, base, rank);
    }
    return;
  }
  cluster_sync();
  if (blocks == 2) add_up<C, 2>(p, base, rank);
  else if (blocks == 4) add_up<C, 4>(p, base, rank);
  else add_up<C, 8>(p, base, rank);
  cluster_sync();  // what others read here stays until they have
}

// Grid (ceil(n / rows) * blocks of a cluster, ceil(o / outputs), heads), 1, 2, 4 or 8 blocks: the blocks of one weight tile run side by side.
template <class C>
__device__ __forceinline__ void linear(const MlaLinearParams& p, uint8_t* raw) {
  multiply<C>(tile_of(p, blockIdx.x / cluster_blocks(), C::kRows, blockIdx.y, C::kOutputs), raw);
}

}  // namespace flashmla::linear
