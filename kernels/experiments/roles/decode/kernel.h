// The Hopper decode kernel: a persistent block an SM, three warpgroups (scores.h, values.h), one of them with two roles (loader.h).
#pragma once
#include "scores.h"
#include "values.h"

namespace flashmla::decode {

__device__ __forceinline__ void init_barriers(SharedStorage& sh, int loaders) {
  auto init = [](uint64_t& bar, int arrivals) { ptx::mbarrier_init(ptx::smem_address(&bar), arrivals); };
  for (int s = 0; s < kStages; ++s) {
    init(sh.full[s], loaders);
    init(sh.empty[s], 8);
    init(sh.p_full[s], 4);
  }
  init(sh.sums_free, 8);
  for (int w = 0; w < kWorks; ++w) init(sh.work_full[w], 1);
  ptx::fence_barrier_init();
}

template <typename T, typename Loader>
__device__ __forceinline__ void decode(const MlaDecodeParams& p, const CUtensorMap* map_q, const CUtensorMap* map_kv,
                                       SharedStorage& sh) {
  using namespace ptx;
  if (threadIdx.x == 0) {
    if ((smem_address(&sh) & 1023) != 0) __trap();  // the swizzle's period
    init_barriers(sh, Loader::kArrivals);
    sh.loader.built = sh.loader.end = 0;
    prefetch_map(map_q);
    prefetch_map(map_kv);
  }
  __syncthreads();
  asm volatile("griddepcontrol.launch_dependents;");
  const int role = __shfl_sync(0xffffffffu, int(threadIdx.x) >> 7, 0);
  if (role == kScores) {
    raise_registers<kScoresRegisters>();
    Scores<T>{p, sh}.run();
  } else {
    drop_registers<kValuesRegisters>();
    const Loader loader{p, map_q, map_kv, sh};
    if (role == kValuesLeft) {
      Values<T, 0, Loader>{p, sh, loader}.run();
    } else {
      Values<T, 1, Loader>{p, sh, loader}.run();
    }
  }
}

}  // namespace flashmla::decode
