// Sums and maxima over a warp and over a block.
#pragma once

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

}  // namespace flashmla
