// The decode kernel's products and nothing else, over shared memory that is filled once: what they cost a multiprocessor in time and energy.
// Two warpgroups, as there; scores are 64 x 64 x 16, values 64 x 256 x 16. Of one kind only, or what a pair of KV blocks takes.
#include "../../kernels/sm90/decode/config.h"
#include "../../kernels/sm90/ptx/wgmma.h"

using namespace flashmla;
using namespace flashmla::ptx;

struct Operands {
  uint8_t q[decode::kTiles][decode::kTileBytes], kv[2][decode::kTiles][decode::kTileBytes];
};
constexpr int kSteps = decode::kTiles * 4;

// A block's operands. fill: random numbers, sizeof(Operands) of them and 1 KiB a block more.
struct Block {
  uint64_t a, k, v;
  uint32_t held[4][4];

  __device__ __forceinline__ Block(const uint4* fill, uint8_t* raw) {
    Operands& sh = *reinterpret_cast<Operands*>(raw + ((1024 - (smem_address(raw) & 1023)) & 1023));
    for (int i = threadIdx.x; i < int(sizeof(Operands) / 16); i += blockDim.x) reinterpret_cast<uint4*>(&sh)[i] = fill[i + blockIdx.x * 64];
    fence_proxy_async();
    __syncthreads();
    const int wg = __shfl_sync(0xffffffffu, int(threadIdx.x) >> 7, 0);
    const uint32_t base = __shfl_sync(0xffffffffu, smem_address(&sh), 0), kv = base + (1 + wg) * uint32_t(sizeof(sh.q));
    a = descriptor(base, 16, 1024);
    k = descriptor(kv, 16, 1024);
    v = descriptor(kv, decode::kTileBytes, 1024);
#pragma unroll
    for (int i = 0; i < 16; ++i) held[i / 4][i % 4] = reinterpret_cast<const uint32_t*>(&sh)[threadIdx.x * 16 + i];
  }
  // Step i of 36, 16 columns each.
  template <bool kFromRegisters>
  __device__ __forceinline__ void scores(float (&d)[32], int i) const {
    const int at = ((i >> 2) * decode::kTileBytes + (i & 3) * 32) >> 4;
    if constexpr (kFromRegisters) Wgmma<Bf16>::qk_rs(d, held[i & 3], k + at, 1);
    else Wgmma<Bf16>::qk_ss(d, a + at, k + at, 1);
  }
  template <bool kFromRegisters>
  __device__ __forceinline__ void values(float (&d)[128], int i) const {
    const int row = ((i & 3) * 2048) >> 4;
    if constexpr (kFromRegisters) Wgmma<Bf16>::pv_rs(d, held[i & 3], v + row, 1);
    else Wgmma<Bf16>::pv_ss(d, a + (((i & 3) * 32) >> 4), v + row, 1);
  }
};

template <int n>
__device__ __forceinline__ void keep(const float (&d)[n], float* out) {
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < n; ++i) sum += d[i];
  if (sum == 1.f) out[threadIdx.x] = sum;  // never, but the compiler can't know
}

// Each loop: 36 steps of one kind.
template <bool kScores, bool kFromRegisters>
__device__ __forceinline__ void products(const uint4* fill, float* out, int loops, uint8_t* raw) {
  const Block block(fill, raw);
  float d[kScores ? 32 : 128] = {};
#pragma unroll 1
  for (int n = 0; n < loops; ++n) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if constexpr (kScores) block.scores<kFromRegisters>(d, i);
      else block.values<kFromRegisters>(d, i);
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(d);
  }
  keep(d, out);
}

// Each loop: a warpgroup's 36 steps of scores, and four steps each of values with P from registers and from shared memory.
template <bool kFromRegisters>
__device__ __forceinline__ void pairs(const uint4* fill, float* out, int loops, uint8_t* raw) {
  const Block block(fill, raw);
  float s[32] = {}, o[128] = {};
#pragma unroll 1
  for (int n = 0; n < loops; ++n) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kSteps; ++i) block.scores<kFromRegisters>(s, i);
    wgmma_commit();
#pragma unroll
    for (int i = 0; i < 8; ++i) i < 4 ? block.values<true>(o, i) : block.values<false>(o, i);
    wgmma_commit();
    wgmma_wait<0>();
    pin(s);
    pin(o);
  }
  keep(s, out);
  keep(o, out);
}

#define PRODUCTS(name, work)                                                                                                \
  extern "C" __global__ void __launch_bounds__(256, 1) name(const uint4* fill, float* out, int loops) {                     \
    extern __shared__ uint8_t raw[];                                                                                        \
    work(fill, out, loops, raw);                                                                                            \
  }
PRODUCTS(scores_from_memory, (products<true, false>))
PRODUCTS(scores_from_registers, (products<true, true>))
PRODUCTS(values_from_memory, (products<false, false>))
PRODUCTS(values_from_registers, (products<false, true>))
PRODUCTS(pair_scored_from_memory, pairs<false>)
PRODUCTS(pair_scored_from_registers, pairs<true>)
