// Appends latent rows to a paged cache: RMSNorm of the 512 compressed values, rotary of the 64, encode, write. Portable.
//
// 1. A block of 128 threads takes a row: thread i holds compressed values 4i .. 4i + 3; thread j < 32 also holds rotary pair j.
// 2. Norm and rotary are skipped where the caller has done them (null weight, null table).
// 3. Encoding equals the CPU codec byte for byte: bf16 and e4m3 round to nearest even, e4m3 saturates at 448,
//    a scale for each 128 values is the power of two next above amax / 448, at least 2^-13, as in the fp8-656 format.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../common/numeric.h"
#include "../include/flashmla_params.h"

namespace flashmla {

__device__ __forceinline__ float load_latent(const MlaAppendParams& p, int64_t index) {
  return p.latent_dtype == FLASHMLA_F32 ? static_cast<const float*>(p.latent)[index]
                                        : __bfloat162float(static_cast<const __nv_bfloat16*>(p.latent)[index]);
}

// e4m3, round to nearest even, saturating; NaN stays NaN (0x7f).
__device__ __forceinline__ uint32_t encode_e4m3(float x) {
  const uint32_t bits = __float_as_uint(x), sign = (bits >> 24) & 0x80u;
  const float a = fabsf(x);
  if (!(a == a)) return sign | 0x7fu;
  if (a >= 448.f) return sign | 0x7eu;
  if (a < 0.015625f) return sign | uint32_t(__float2int_rn(a * 512.f));  // subnormal steps of 2^-9; 8 is the first normal
  uint32_t m = bits & 0x7fffffffu;
  m += 0x7ffffu + ((m >> 20) & 1u);  // to three mantissa bits
  return sign | ((m >> 20) - ((127u - 7u) << 3));
}

__device__ __forceinline__ void store_16(const MlaAppendParams& p, char* row, int column, float lo, float hi) {
  *reinterpret_cast<uint32_t*>(row + column * 2) = p.format == FLASHMLA_ROWS_F16 ? F16::pack(lo, hi) : Bf16::pack(lo, hi);
}

__device__ __forceinline__ void append(const MlaAppendParams& p) {
  const int row = blockIdx.x, thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int slot = p.slots[row];
  if (slot < 0) return;
  const int64_t at = int64_t(row) * 576;
  char* target = static_cast<char*>(p.cache) + int64_t(slot / p.page_size) * p.cache_page_stride +
                 int64_t(slot % p.page_size) * p.cache_row_stride;
  float v[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = load_latent(p, at + thread * 4 + i);

  if (p.norm_weight != nullptr) {
    __shared__ float sums[4];
    float sum = v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + v[3] * v[3];
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    const float mean = (sums[0] + sums[1] + sums[2] + sums[3]) / 512.f;
    const float inv = 1.f / sqrtf(mean + p.norm_eps);
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = v[i] * inv * p.norm_weight[thread * 4 + i];
  }

  const bool fp8 = p.format == FLASHMLA_FP8_656;
  if (fp8) {
    // A warp holds one group of 128.
    float amax = fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])), fmaxf(fabsf(v[2]), fabsf(v[3])));
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) amax = fmaxf(amax, __shfl_xor_sync(0xffffffffu, amax, d));
    const uint32_t word = __float_as_uint(__fdiv_rn(amax, 448.f));
    const uint32_t exponent = max(min((word >> 23) + ((word & 0x7fffffu) != 0 ? 1u : 0u), 254u), 127u - 13u);
    const float inverse = exponent == 254u ? __uint_as_float(0x400000u) : __uint_as_float((254u - exponent) << 23);  // 2^(127 - exponent)
    uint32_t packed = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) packed |= encode_e4m3(v[i] * inverse) << (8 * i);
    *reinterpret_cast<uint32_t*>(target + thread * 4) = packed;
    if (lane == 0) *reinterpret_cast<uint32_t*>(target + 512 + warp * 4) = exponent << 23;  // its float32
  } else {
    store_16(p, target, thread * 4, v[0], v[1]);
    store_16(p, target, thread * 4 + 2, v[2], v[3]);
  }

  if (thread < 32) {
    const int first = p.interleaved ? 2 * thread : thread, second = p.interleaved ? 2 * thread + 1 : thread + 32;
    float a = load_latent(p, at + 512 + first), b = load_latent(p, at + 512 + second);
    if (p.rotary_table != nullptr) {
      const float2 angle = *reinterpret_cast<const float2*>(p.rotary_table + (int64_t(p.positions[row]) * 32 + thread) * 2);
      const float x = a, y = b;
      a = x * angle.x - y * angle.y;
      b = x * angle.y + y * angle.x;
    }
    uint16_t* rope = reinterpret_cast<uint16_t*>(target + (fp8 ? 528 : 1024));
    const bool f16 = p.format == FLASHMLA_ROWS_F16;
    rope[first] = uint16_t((f16 ? F16::pack(a, 0.f) : Bf16::pack(a, 0.f)) & 0xffffu);
    rope[second] = uint16_t((f16 ? F16::pack(b, 0.f) : Bf16::pack(b, 0.f)) & 0xffffu);
  }
}

}  // namespace flashmla

// A decode after it may start: it waits for this kernel's end before it uses anything that it writes.
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

extern "C" __global__ void __launch_bounds__(128) mla_append(const __grid_constant__ MlaAppendParams p) {
  launch_dependents();
  flashmla::append(p);
}

extern "C" __global__ void __launch_bounds__(256) mla_cast(const __grid_constant__ MlaCastParams p) {
  launch_dependents();
  const int64_t at = (int64_t(blockIdx.x) * 256 + threadIdx.x) * 4;
  if (at >= p.n) return;
  const float4 v = *reinterpret_cast<const float4*>(p.source + at);
  using namespace flashmla;
  const bool bf16 = p.target_dtype == FLASHMLA_BF16;
  uint2 packed;
  packed.x = bf16 ? Bf16::pack(v.x, v.y) : F16::pack(v.x, v.y);
  packed.y = bf16 ? Bf16::pack(v.z, v.w) : F16::pack(v.z, v.w);
  *reinterpret_cast<uint2*>(static_cast<uint16_t*>(p.target) + at) = packed;
}
