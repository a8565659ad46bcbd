#include "cache.h"
#include "command.h"

void decodeBf16(const u16* x, float* out, u32 n) {
  const f4 zero = zero4();
  const u16* end = x + n;
  for (const u16* whole = x + n / 32 * 32; x != whole; x += 32, out += 32) {
    f4 words[4];
    _Pragma("clang loop unroll(full)") for (int k = 0; k < 4; k++) words[k] = F4(x + 8 * k);
    _Pragma("clang loop unroll(full)") for (int k = 0; k < 4; k++) {
      STORE(out + 8 * k, wasm_i16x8_shuffle(zero, words[k], 0, 8, 1, 9, 2, 10, 3, 11));
      STORE(out + 8 * k + 4, wasm_i16x8_shuffle(zero, words[k], 4, 12, 5, 13, 6, 14, 7, 15));
    }
  }
  for (; x != end; x++, out++) *out = bf16(*x);
}

// An e4m3 byte's magnitude, moved to a float32's exponent and mantissa, is the value times 2^−120, subnormals included.
INLINE f4 e4m3(v128_t words, f4 scale) {
  v128_t sign = wasm_i32x4_shl(wasm_v128_and(words, wasm_i32x4_const_splat(0x80)), 24);
  v128_t magnitude = wasm_v128_and(words, wasm_i32x4_const_splat(0x7f));
  v128_t nan = wasm_i32x4_eq(magnitude, wasm_i32x4_const_splat(0x7f));
  f4 value = MUL(wasm_v128_or(sign, wasm_i32x4_shl(magnitude, 20)), wasm_f32x4_const_splat(0x1p120f));
  value = MUL(value, scale);
  return wasm_v128_or(value, wasm_v128_and(nan, wasm_i32x4_const_splat(0x7fc00000)));
}

static void decodeE4m3(const u8* x, float scale, float* out, u32 n) {
  f4 s = splat4(scale);
  for (u32 k = 0; k < n; k += 8) {
    v128_t words = wasm_u16x8_load8x8(x + k);
    STORE(out + k, e4m3(wasm_u32x4_extend_low_u16x8(words), s));
    STORE(out + k + 4, e4m3(wasm_u32x4_extend_high_u16x8(words), s));
  }
}

const float* cacheRow(const Cache* c, u32 block, u32 slot, float* scratch) {
  u8* page = pageOf(c, block);
  u32 width = c->rank + c->rope;
  if (c->format == CACHE_F32) return (const float*)page + slot * width;
  if (c->format == CACHE_BF16) {
    decodeBf16((const u16*)page + slot * width, scratch, width);
  } else if (c->format == CACHE_FP8_656) {
    u8* row = page + slot * 656;
    for (int t = 0; t < 4; t++) decodeE4m3(row + t * 128, ((float*)(row + 512))[t], scratch + t * 128, 128);
    decodeBf16((u16*)(row + 528), scratch + 512, 64);
  } else {
    u8* row = page + slot * 576;
    u8* scales = page + c->pageSize * 576 + slot * 8;
    for (int t = 0; t < 7; t++) {
      u32 e = scales[t];
      float scale = e == 255 ? __builtin_nanf("") : e == 0 ? 0x1p-127f : asFloat(e << 23);
      decodeE4m3(row + t * 64, scale, scratch + t * 64, 64);
    }
    decodeBf16((u16*)(row + 448), scratch + 448, 64);
  }
  return scratch;
}

// Nearest e4m3, ties to even, saturating at ±448; NaN stays NaN.
static u8 toE4m3(float x) {
  u32 word = asBits(x), sign = (word >> 24) & 0x80, magnitude = word & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7f;
  if (magnitude >= 0x43e00000) return sign | 0x7e;
  // Below 2^−6 the step is 2^−9, the last place of a float32 at 2^14: adding rounds to it.
  if (magnitude < 0x3c800000) return sign | (asBits(__builtin_fabsf(x) + 16384) & 15);
  return sign | (((magnitude + 0x7ffff + ((magnitude >> 20) & 1)) >> 20) - (120 << 3));
}

// Byte of the tile's scale: the power of two next above max|x| / 448, at least 2^−13.
static u32 encodeTile(const float* x, u8* out, int n) {
  float max = 0;
  for (int k = 0; k < n; k++)
    if (__builtin_fabsf(x[k]) > max) max = __builtin_fabsf(x[k]);
  u32 word = asBits((float)((double)max / 448));
  u32 scale = (word >> 23) + (word & 0x7fffff ? 1 : 0);
  if (scale > 254) scale = 254;
  if (scale < 114) scale = 114;
  double inverse = __builtin_bit_cast(double, (u64)(127 - (i32)scale + 1023) << 52);
  for (int k = 0; k < n; k++) out[k] = toE4m3((float)(x[k] * inverse));
  return scale;
}

static void encodeBf16(const float* x, u16* out, u32 n) {
  for (u32 k = 0; k < n; k++) out[k] = toBf16(x[k]);
}

static void encodeRow(const Cache* c, u32 block, u32 slot, const float* x) {
  u8* page = pageOf(c, block);
  u32 width = c->rank + c->rope;
  if (c->format == CACHE_F32) {
    float* row = (float*)page + slot * width;
    for (u32 k = 0; k < width; k++) row[k] = x[k];
  } else if (c->format == CACHE_BF16) {
    encodeBf16(x, (u16*)page + slot * width, width);
  } else if (c->format == CACHE_FP8_656) {
    u8* row = page + slot * 656;
    for (int t = 0; t < 4; t++) ((u32*)(row + 512))[t] = encodeTile(x + t * 128, row + t * 128, 128) << 23;
    encodeBf16(x + 512, (u16*)(row + 528), 64);
  } else {
    u8* row = page + slot * 576;
    u8* scales = page + c->pageSize * 576 + slot * 8;
    for (int t = 0; t < 7; t++) scales[t] = (u8)encodeTile(x + t * 64, row + t * 64, 64);
    scales[7] = 0;
    encodeBf16(x + 448, (u16*)(row + 448), 64);
  }
}

// append: Cache, latent, slots, a[23] rows. copy: Cache, from, to, slots.
void runCache(Sync* sync, Command* c) {
  const Cache* cache = PTR(Cache, 0);
  if (c->op == OP_COPYBLOCK) {
    FOR_TASKS(t) {
      u8 *from = pageOf(cache, c->a[1]), *to = pageOf(cache, c->a[2]);
      u32 slots = c->a[3];
      if (cache->format == CACHE_FP8_584) {
        __builtin_memcpy(to, from, slots * 576);
        u32 scales = cache->pageSize * 576;
        __builtin_memcpy(to + scales, from + scales, slots * 8);
      } else {
        __builtin_memcpy(to, from, slots * rowBytes(cache));
      }
    }
    return;
  }
  FOR_TASKS(t) {
    i32 slot = PTR(i32, 2)[t];
    if (slot < 0) continue;
    if ((u32)slot >= cache->numBlocks * cache->pageSize) fail(sync, STATUS_SLOT, slot, cache->numBlocks);
    else encodeRow(cache, slot / cache->pageSize, slot % cache->pageSize, PTR(float, 1) + t * (cache->rank + cache->rope));
  }
}
