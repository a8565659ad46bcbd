// Conversions between f32 and the narrow types by their bits, so that each equals the host codec's, NaN included.
#pragma once
#include <stdint.h>

#include "../include/flashmla_model_params.h"

namespace flashmla {

__device__ __forceinline__ float bf16_value(uint32_t word) { return __uint_as_float(word << 16); }

// Nearest, ties to even; NaN stays NaN with its sign.
__device__ __forceinline__ uint32_t bf16_bits(float x) {
  const uint32_t word = __float_as_uint(x);
  if ((word & 0x7fffffffu) > 0x7f800000u) return (word >> 16) | 0x40u;
  return (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
}

__device__ __forceinline__ float half_value(uint32_t word) {
  const uint32_t sign = (word & 0x8000u) << 16, exponent = (word >> 10) & 31u, fraction = word & 1023u;
  if (exponent == 0u) return __uint_as_float(sign | __float_as_uint(float(fraction) * 5.9604644775390625e-8f));  // 2^-24
  if (exponent == 31u) return __uint_as_float(sign | 0x7f800000u | (fraction << 13));
  return __uint_as_float(sign | ((exponent + 112u) << 23) | (fraction << 13));
}

// 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinities, NaN at 0x7f and 0xff (OCP OFP8 1.0).
__device__ __forceinline__ float e4m3_value(uint32_t byte) {
  const uint32_t sign = (byte & 0x80u) << 24, magnitude = byte & 0x7fu;
  if (magnitude == 0x7fu) return __uint_as_float(0x7fc00000u);
  if (magnitude < 8u) return __uint_as_float(sign | __float_as_uint(float(magnitude) * 0.001953125f));  // steps of 2^-9
  return __uint_as_float(sign | ((magnitude << 20) + (120u << 23)));
}

// Nearest, ties to even; saturates at 448; NaN stays NaN with its sign.
__device__ __forceinline__ uint32_t e4m3_bits(float x) {
  const uint32_t word = __float_as_uint(x), sign = (word >> 24) & 0x80u, magnitude = word & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7fu;
  if (magnitude >= 0x43e00000u) return sign | 0x7eu;
  if (magnitude < 0x3c800000u) return sign | (__float_as_uint(__uint_as_float(magnitude) + 16384.f) & 15u);
  return sign | (((magnitude + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20) - (120u << 3));
}

// 2^(byte - 127)
__device__ __forceinline__ float e8m0_value(uint32_t byte) {
  if (byte == 255u) return __uint_as_float(0x7fc00000u);
  return byte == 0u ? __uint_as_float(0x400000u) : __uint_as_float(byte << 23);
}

// The power of two next above max / 448, at least 2^-13 (FlashMLA's tests/quant.py). max is not NaN.
__device__ __forceinline__ uint32_t e8m0_scale(float max) {
  const uint32_t word = __float_as_uint(__fdiv_rn(max, 448.f));
  const uint32_t byte = (word >> 23) + ((word & 0x7fffffu) != 0u ? 1u : 0u);
  return byte < 114u ? 114u : byte > 254u ? 254u : byte;
}

__device__ __forceinline__ float nan_value() { return __uint_as_float(0x7fc00000u); }

}  // namespace flashmla
