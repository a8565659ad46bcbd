// Sums and maxima over a warp and over a block.
#pragma once
#include <stdint.h>

namespace flashmla {

constexpr unsigned kWarp = 0xffffffffu;

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(kWarp, x, d);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) x = fmaxf(x, __shfl_xor_sync(kWarp, x, d));
  return x;
}

// Sum over a block of at most 1024 threads; every thread gets it. `shared` has 32 floats, free again after the next barrier.
__device__ __forceinline__ float block_sum(float x, float* shared) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
  x = warp_sum(x);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  return warp_sum(lane < warps ? shared[lane] : 0.f);
}

// The sum of what the threads before this one have, and of all, in a block of 1024. `shared` has 32 words, which hold the sums up to each warp then.
__device__ __forceinline__ uint64_t block_scan(uint64_t mine, uint64_t* shared, uint64_t& total) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  uint64_t sum = mine;
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const uint64_t other = __shfl_up_sync(kWarp, sum, d);
    if (lane >= d) sum += other;
  }
  __syncthreads();
  if (lane == 31) shared[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    uint64_t part = shared[lane];
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
      const uint64_t other = __shfl_up_sync(kWarp, part, d);
      if (lane >= d) part += other;
    }
    shared[lane] = part;
  }
  __syncthreads();
  total = shared[31];
  return (warp == 0 ? 0 : shared[warp - 1]) + sum - mine;
}
__device__ __forceinline__ uint64_t block_total(uint64_t mine, uint64_t* shared) {
  uint64_t total;
  block_scan(mine, shared, total);
  return total;
}

}  // namespace flashmla
