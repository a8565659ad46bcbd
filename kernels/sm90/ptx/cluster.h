// Thread block clusters: the other block's shared memory, stores into it that arrive on its mbarrier.
#pragma once
#include <stdint.h>

namespace flashmla::ptx {

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// What a shared address of this block is in the block of that rank.
__device__ __forceinline__ uint32_t address_in(uint32_t address, uint32_t rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
// 16, 8 or 4 bytes to the other block; they count on its mbarrier when they are there.
__device__ __forceinline__ void store_async(uint32_t there, uint32_t bar_there, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(there), "r"(a),
               "r"(b), "r"(c), "r"(d), "r"(bar_there) : "memory");
}
__device__ __forceinline__ void store_async(uint32_t there, uint32_t bar_there, uint32_t a, uint32_t b) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(there), "r"(a), "r"(b),
               "r"(bar_there) : "memory");
}
__device__ __forceinline__ void store_async(uint32_t there, uint32_t bar_there, uint32_t a) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(there), "r"(a), "r"(bar_there) : "memory");
}

}  // namespace flashmla::ptx
