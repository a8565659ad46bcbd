// Commands of the linear layers, and the conversions that loading makes.
#include "command.h"
#include "matrix.h"

// out `[n, h·o]` = x `[n, h·i]` head by head · w `[h, o, i]`. A task is a head's run of output columns for a run of rows.
void runGemm(Command* c, u8* scratch) {
  Matrix w = *PTR(Matrix, 0);
  u32 heads = c->a[3], n = c->a[4], columns = c->a[5], rowsPerTask = c->a[6];
  u32 o = w.o / heads, blocks = blocksOf(w.i);
  u32 columnTasks = (o + columns - 1) / columns, rowTasks = (n + rowsPerTask - 1) / rowsPerTask;
  u32 bytes = w.dtype == W_F32 ? w.i * 4 : w.dtype == W_BF16 ? w.i * 2 : blocks * Q8_BLOCK;
  FOR_TASKS(t) {
    u32 column = t % columnTasks, head = t / columnTasks % heads, first = t / columnTasks / heads * rowsPerTask;
    if (first >= n || rowTasks == 0) continue;
    Matrix part = {w.dtype, w.data + head * o * bytes, w.scales + head * o * blocks * 4, o, w.i, w.packed};
    u32 left = n - first;
    u32 row = first * heads + head;
    Rows rows = {.x = PTR(float, 1) + row * w.i,
                 .xStride = heads * w.i,
                 .quantized = {PTR(i16, 7) + row * blocks * Q8_BLOCK, PTR(float, 8) + row * blocks, heads},
                 .out = PTR(float, 2) + row * o,
                 .outStride = heads * o,
                 .n = left < rowsPerTask ? left : rowsPerTask};
    u32 from = column * columns, to = from + columns < o ? from + columns : o;
    product(&part, from, to, &rows, (float*)scratch);
  }
}

static void quantizeBlock(const float* x, int n, i16* values, float* scale) {
  float max = 0;
  for (int k = 0; k < n; k++) {
    float m = __builtin_fabsf(x[k]);
    // NaN has to reach the result: a NaN scale makes the block's products NaN.
    if (m > max || m != m) max = m;
    if (m != m) break;
  }
  if (max == __builtin_inff()) max = __builtin_nanf("");
  *scale = max / 32767;
  float inverse = max > 0 ? 32767 / max : 0;
  for (int k = 0; k < Q8_BLOCK; k++) values[k] = k < n ? (i16)__builtin_rintf(x[k] * inverse) : 0;
}

// x `[rows, d]` to 16-bit blocks: x, values, scales, d; a[23] rows.
void runQuantize(Command* c) {
  u32 d = c->a[3], blocks = blocksOf(d);
  FOR_TASKS(t)
  for (u32 b = 0; b < blocks; b++) {
    u32 left = d - b * Q8_BLOCK, at = t * blocks + b;
    quantizeBlock(PTR(float, 0) + t * d + b * Q8_BLOCK, left < Q8_BLOCK ? left : Q8_BLOCK, PTR(i16, 1) + at * Q8_BLOCK,
                  PTR(float, 2) + at);
  }
}

enum Source { FROM_F32, FROM_BF16, FROM_F16 };

static float half(u16 h) {
  u32 sign = (u32)(h & 0x8000) << 16, e = (h >> 10) & 31, f = h & 1023;
  if (e == 31) return asFloat(sign | 0x7f800000 | f << 13);
  if (e == 0) return asFloat(sign | asBits(f * 5.9604644775390625e-8f));
  return asFloat(sign | (e + 112) << 23 | f << 13);
}

static float element(const u8* source, int dtype, u32 k) {
  if (dtype == FROM_F32) return ((const float*)source)[k];
  u16 word = ((const u16*)source)[k];
  return dtype == FROM_BF16 ? bf16(word) : half(word);
}

// 16-bit elements to float32; the source may be the upper half of the target: element k is read before k is written.
__attribute__((export_name("widen"))) void widen(float* out, const u8* source, int dtype, u32 n) {
  for (u32 k = 0; k < n; k++) out[k] = element(source, dtype, k);
}

// Rows of i elements to grouped bf16; in place where the source is bf16.
__attribute__((export_name("toBf16Rows"))) void toBf16Rows(u16* out, const u8* source, int dtype, u32 rows, u32 i) {
  for (u32 r = 0; r < rows; r++) {
    for (u32 k = 0; k < i; k += 8) {
      u32 n = i - k < 8 ? i - k : 8, at = r * i + k;
      u16 group[8];
      for (u32 j = 0; j < n; j++)
        group[j] = dtype == FROM_BF16 ? ((const u16*)source)[at + j] : toBf16(element(source, dtype, at + j));
      for (u32 j = 0; j < n; j++) out[at + j] = n == 8 ? group[(j & 1) * 4 + (j >> 1)] : group[j];
    }
  }
}

// Rows to 8-bit blocks with scale max|x| / 127. result: Σ (x − x̂)², Σ x², max |x − x̂|.
__attribute__((export_name("toQ8Rows"))) void toQ8Rows(i8* out, float* scales, const u8* source, int dtype, u32 rows,
                                                       u32 i, double* result) {
  u32 blocks = blocksOf(i);
  for (u32 r = 0; r < rows; r++) {
    for (u32 b = 0; b < blocks; b++) {
      float x[Q8_BLOCK], max = 0;
      for (u32 k = 0; k < Q8_BLOCK; k++) {
        u32 at = b * Q8_BLOCK + k;
        x[k] = at < i ? element(source, dtype, r * i + at) : 0;
        if (__builtin_fabsf(x[k]) > max) max = __builtin_fabsf(x[k]);
      }
      float scale = max / 127, inverse = max > 0 ? 127 / max : 0;
      scales[r * blocks + b] = scale;
      for (u32 k = 0; k < Q8_BLOCK; k++) {
        i8 q = (i8)__builtin_rintf(x[k] * inverse);
        out[(r * blocks + b) * Q8_BLOCK + k] = q;
        double e = (double)x[k] - (double)q * scale, size = e < 0 ? -e : e;
        result[0] += e * e;
        result[1] += (double)x[k] * x[k];
        if (size > result[2]) result[2] = size;
      }
    }
  }
}
