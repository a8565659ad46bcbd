// Vector helpers of the kernels: 128-bit WebAssembly SIMD, four float32 lanes.
#pragma once
#include <stdint.h>
#include <wasm_simd128.h>

typedef uint8_t u8;
typedef int8_t i8;
typedef uint16_t u16;
typedef int16_t i16;
typedef int32_t i32;
typedef uint32_t u32;
typedef int64_t i64;
typedef uint64_t u64;
typedef v128_t f4;

#define INLINE static inline __attribute__((always_inline))
#define F4(p) wasm_v128_load(p)
#define SPLAT(p) wasm_v128_load32_splat(p)
#define STORE(p, v) wasm_v128_store(p, v)
#define ADD wasm_f32x4_add
#define MUL wasm_f32x4_mul

// Fused where the runtime has relaxed SIMD: one rounding instead of two, and half the instructions.
#ifdef __wasm_relaxed_simd__
#define MADD(a, b, c) wasm_f32x4_relaxed_madd(a, b, c)
#else
#define MADD(a, b, c) wasm_f32x4_add(wasm_f32x4_mul(a, b), c)
#endif

INLINE f4 zero4(void) { return wasm_f32x4_const_splat(0); }
INLINE f4 splat4(float x) { return wasm_f32x4_splat(x); }

INLINE float sum4(f4 x) {
  x = ADD(x, wasm_i32x4_shuffle(x, x, 2, 3, 0, 1));
  x = ADD(x, wasm_i32x4_shuffle(x, x, 1, 0, 3, 2));
  return wasm_f32x4_extract_lane(x, 0);
}

INLINE float asFloat(u32 bits) { return __builtin_bit_cast(float, bits); }
INLINE u32 asBits(float x) { return __builtin_bit_cast(u32, x); }
INLINE float bf16(u16 word) { return asFloat((u32)word << 16); }

// Nearest bfloat16, ties to even; NaN stays NaN.
INLINE u16 toBf16(float x) {
  u32 w = asBits(x);
  if ((w & 0x7fffffff) > 0x7f800000) return (u16)((w >> 16) | 0x40);
  return (u16)((w + 0x7fff + ((w >> 16) & 1)) >> 16);
}

// e^x to about 2 ulp: x = n ln 2 + r, a degree-6 polynomial in r (Cephes expf). Below −87.3 it is 0, so e^−∞ = 0.
// Adding 1.5 · 2^23 rounds to an integer n, whose bits are then the last of the sum's.
INLINE f4 exp4(f4 x) {
  f4 tiny = wasm_f32x4_lt(x, wasm_f32x4_const_splat(-87.3f)), round = wasm_f32x4_const_splat(0x1.8p23f);
  x = wasm_f32x4_pmin(x, wasm_f32x4_const_splat(88.37f));
  f4 sum = MADD(x, wasm_f32x4_const_splat(1.44269504f), round), n = wasm_f32x4_sub(sum, round);
  f4 r = MADD(n, wasm_f32x4_const_splat(-0.693359375f), x);
  r = MADD(n, wasm_f32x4_const_splat(2.12194440e-4f), r);
  f4 p = wasm_f32x4_const_splat(1.9875691500e-4f);
  p = MADD(p, r, wasm_f32x4_const_splat(1.3981999507e-3f));
  p = MADD(p, r, wasm_f32x4_const_splat(8.3334519073e-3f));
  p = MADD(p, r, wasm_f32x4_const_splat(4.1665795894e-2f));
  p = MADD(p, r, wasm_f32x4_const_splat(1.6666665459e-1f));
  p = MADD(p, r, wasm_f32x4_const_splat(5.0000001201e-1f));
  p = ADD(MADD(MUL(r, r), p, r), wasm_f32x4_const_splat(1));
  f4 power = wasm_i32x4_add(wasm_i32x4_shl(sum, 23), wasm_i32x4_const_splat(127 << 23));
  return wasm_v128_andnot(MUL(p, power), tiny);
}

INLINE float exp1(float x) { return wasm_f32x4_extract_lane(exp4(splat4(x)), 0); }

// How many of `rows` rows go together where three can: threes, without leaving a single one behind if there are more.
INLINE u32 together(u32 rows) { return rows == 3 || rows >= 5 ? 3 : rows >= 2 ? 2 : 1; }

// Reads `lines` cache lines at the start of each 4 KiB page of [at, end), all pages at once: the processor's prefetcher
// stops at a page's end, and a stream would wait for memory at the start of each. The result only keeps the reads alive.
INLINE u32 touchPages(const u8* at, const u8* end, u32 lines) {
  u32 seen = 0;
  for (; at < end; at = (const u8*)(((u32)at + 4096) & ~4095u))
    for (const u8* line = at; line < at + 64 * lines && line + 4 <= end; line += 64) seen ^= *(const u32*)line;
  return seen;
}

double expDouble(double x);
double logDouble(double x);
