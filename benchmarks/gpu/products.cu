// The decode kernel's products and nothing else, over shared memory that is filled once: what they cost a multiprocessor in time and energy.
// Two warpgroups, as there; scores are 64 x 64 x 16, values 64 x 256 x 16.
#include "../../kernels/sm90/decode/config.h"
#include "../../kernels/sm90/ptx/wgmma.h"

using namespace flashmla;
using namespace flashmla::ptx;

struct Operands {
  uint8_t q[decode::kTiles][decode::kTileBytes], kv[2][decode::kTiles][decode::kTileBytes];
};
constexpr int kSteps = decode::kTiles * 4;

// Each loop: 36 steps of one product, of 16 columns each. fill: random numbers, sizeof(Operands) of them and 1 KiB a block more.
template <bool kScores, bool kFromRegisters>
__device__ __forceinline__ void products(const uint4* fill, float* out, int loops, uint8_t* raw) {
  Operands& sh = *reinterpret_cast<Operands*>(raw + ((1024 - (smem_address(raw) & 1023)) & 1023));
  for (int i = threadIdx.x; i < int(sizeof(Operands) / 16); i += blockDim.x) reinterpret_cast<uint4*>(&sh)[i] = fill[i + blockIdx.x * 64];
  fence_proxy_async();
  __syncthreads();
  const int wg = __shfl_sync(0xffffffffu, int(threadIdx.x) >> 7, 0);
  const uint32_t base = __shfl_sync(0xffffffffu, smem_address(&sh), 0);
  const uint64_t a = descriptor(base, 16, 1024), k = descriptor(base + (1 + wg) * sizeof(sh.q), 16, 1024);
  const uint64_t v = descriptor(base + (1 + wg) * sizeof(sh.q), decode::kTileBytes, 1024);
  uint32_t held[4][4];
#pragma unroll
  for (int i = 0; i < 16; ++i) held[i / 4][i % 4] = reinterpret_cast<const uint32_t*>(&sh)[threadIdx.x * 16 + i];
  constexpr int kValues = kScores ? 32 : 128;
  float d[kValues] = {};
#pragma unroll 1
  for (int n = 0; n < loops; ++n) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int at = ((i >> 2) * decode::kTileBytes + (i & 3) * 32) >> 4, row = ((i & 3) * 2048) >> 4;
      if constexpr (kScores && kFromRegisters) Wgmma<Bf16>::qk_rs(d, held[i & 3], k + at, 1);
      if constexpr (kScores && !kFromRegisters) Wgmma<Bf16>::qk_ss(d, a + at, k + at, 1);
      if constexpr (!kScores && kFromRegisters) Wgmma<Bf16>::pv_rs(d, held[i & 3], v + row, 1);
      if constexpr (!kScores && !kFromRegisters) Wgmma<Bf16>::pv_ss(d, a + at, v + row, 1);
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(d);
  }
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < kValues; ++i) sum += d[i];
  if (sum == 1.f) out[threadIdx.x] = sum;  // never, but the compiler can't know
}

#define PRODUCTS(name, scores, from_registers)                                                                              \
  extern "C" __global__ void __launch_bounds__(256, 1) name(const uint4* fill, float* out, int loops) {                     \
    extern __shared__ uint8_t raw[];                                                                                        \
    products<scores, from_registers>(fill, out, loops, raw);                                                                \
  }
PRODUCTS(scores_from_memory, true, false)
PRODUCTS(scores_from_registers, true, true)
PRODUCTS(values_from_memory, false, false)
PRODUCTS(values_from_registers, false, true)
