// Reads pages of 72 KiB and does nothing else: what the pages of a decode cost to read. Each block takes an equal run of them, three at a time.
#include <stdint.h>

constexpr uint32_t kPage = 64 * 576 * 2;
constexpr int kStages = 3, kMostIds = 2048;

__device__ __forceinline__ uint32_t address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

extern "C" __global__ void __launch_bounds__(128, 1) read_pages(const char* kv, const int* pages, int n) {
  extern __shared__ __align__(128) uint8_t stages[];
  __shared__ uint64_t full[kStages];
  __shared__ int ids[kMostIds];
  asm volatile("griddepcontrol.launch_dependents;");
  const int first = int(int64_t(n) * blockIdx.x / gridDim.x), count = int(int64_t(n) * (blockIdx.x + 1) / gridDim.x) - first;
  for (int i = threadIdx.x; i < count; i += blockDim.x) ids[i] = pages[first + i];
  if (threadIdx.x < kStages) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(full + threadIdx.x)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  __syncthreads();
  asm volatile("griddepcontrol.wait;" ::: "memory");
  if (threadIdx.x != 0) return;
  const auto ask = [&](int i) {
    const uint32_t bar = address(full + i % kStages), to = address(stages) + i % kStages * kPage;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(kPage) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(kv + int64_t(ids[i]) * kPage), "r"(kPage), "r"(bar) : "memory");
  };
  for (int i = 0; i < min(count, kStages); ++i) ask(i);
  for (int i = 0; i < count; ++i) {
    uint32_t done = 0;
    while (!done) {
      asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
                   : "=r"(done) : "r"(address(full + i % kStages)), "r"(i / kStages & 1) : "memory");
    }
    if (i + kStages < count) ask(i + kStages);
  }
}
