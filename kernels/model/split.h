// f32 values as sums of three bf16 values: cutting bits off leaves a rest that is exact, and the third part has none.
#pragma once
#include "bits.h"

namespace flashmla {

// The upper halves of two words, the first one's in the lower half.
__device__ __forceinline__ uint32_t upper_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }

// The first part: bf16 towards zero, and NaN whatever bits it has.
__device__ __forceinline__ uint32_t first_part(float x, float y) {
#ifdef FLASHMLA_ON_HOST
  return upper_halves(x == x ? __float_as_uint(x) : 0x7fc00000u, y == y ? __float_as_uint(y) : 0x7fc00000u);
#else
  uint32_t pair;
  asm("cvt.rz.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
  return pair;
#endif
}

// More than what the first part leaves of any number.
constexpr float kMostRest = 0x1p120f;

// Two values' parts, packed in pairs. An infinity leaves inf - inf, and the lesser of that and a number is the number: the sum stays infinite.
__device__ __forceinline__ void split_pair(float x, float y, uint32_t (&parts)[3]) {
  parts[0] = first_part(x, y);
  const float x1 = fminf(x - __uint_as_float(parts[0] << 16), kMostRest), y1 = fminf(y - __uint_as_float(parts[0] & 0xffff0000u), kMostRest);
  const uint32_t a = __float_as_uint(x1), b = __float_as_uint(y1);
  parts[1] = upper_halves(a, b);
  parts[2] = upper_halves(__float_as_uint(x1 - __uint_as_float(a & 0xffff0000u)), __float_as_uint(y1 - __uint_as_float(b & 0xffff0000u)));
}

}  // namespace flashmla
