// f32 values as sums of three bf16 values: cutting bits off leaves a rest that is exact, and the third part has none.
#pragma once
#include "bits.h"

namespace flashmla {

// The upper halves of two words, the first one's in the lower half.
__device__ __forceinline__ uint32_t upper_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }

// Two values' parts, packed in pairs. Infinities and NaN are whole in the first part.
__device__ __forceinline__ void split_pair(float x, float y, uint32_t (&parts)[3]) {
  const uint32_t a = x == x ? __float_as_uint(x) : 0x7fc00000u, b = y == y ? __float_as_uint(y) : 0x7fc00000u;
  parts[0] = upper_halves(a, b);
  const float x1 = fabsf(x) < INFINITY ? x - __uint_as_float(a & 0xffff0000u) : 0.f;
  const float y1 = fabsf(y) < INFINITY ? y - __uint_as_float(b & 0xffff0000u) : 0.f;
  const uint32_t a1 = __float_as_uint(x1), b1 = __float_as_uint(y1);
  parts[1] = upper_halves(a1, b1);
  parts[2] = upper_halves(__float_as_uint(x1 - __uint_as_float(a1 & 0xffff0000u)), __float_as_uint(y1 - __uint_as_float(b1 & 0xffff0000u)));
}

}  // namespace flashmla
