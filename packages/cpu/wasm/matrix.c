// Products x · Wᵀ, both row-major along the summed dimension: tiles of dot products, four lanes of partial sums each,
// added up in one order whatever the tile, so a row's result depends neither on its batch nor on the thread.
#include "matrix.h"

#define UNROLL _Pragma("clang loop unroll(full)")
#define ROLLED _Pragma("clang loop unroll(disable)")

// Columns of a panel that are multiplied by all rows before the next ones are read: 1 KiB of float32 or of bf16.
enum { BLOCK_F32 = 32, BLOCK_BF16 = 64, BLOCK_WIDE = 64, WIDE = 24, WIDE_ROWS = 32, LEAST_WIDE = 24 };

INLINE const float* xRow(const Rows* r, u32 row) {
  u32 at = r->list ? (u32)r->list[row] / r->xDivide : row;
  return r->x + at * r->xStride;
}

INLINE float* outRow(const Rows* r, u32 row) { return r->out + (r->list ? (u32)r->list[row] : row) * r->outStride; }

// out[r][j] for R rows of x and O weight rows `stride` floats apart.
INLINE void tileF32(const int R, const int O, const float* const* x, const float* w, u32 n, float* const* out) {
  f4 acc[R][O];
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int o = 0; o < O; o++) acc[r][o] = zero4();
  u32 k = 0;
  for (; k + 4 <= n; k += 4) {
    f4 a[R];
    UNROLL for (int r = 0; r < R; r++) a[r] = F4(x[r] + k);
    UNROLL for (int o = 0; o < O; o++) {
      f4 b = F4(w + o * n + k);
      UNROLL for (int r = 0; r < R; r++) acc[r][o] = MADD(a[r], b, acc[r][o]);
    }
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int o = 0; o < O; o++) {
    float sum = sum4(acc[r][o]);
    for (u32 t = k; t < n; t++) sum += x[r][t] * w[o * n + t];
    out[r][o] = sum;
  }
}

INLINE void tileBf16(const int O, const float* x, const u16* w, u32 n, float* out) {
  f4 acc[O];
  f4 high = wasm_i32x4_const_splat((i32)0xffff0000);
  UNROLL for (int o = 0; o < O; o++) acc[o] = zero4();
  u32 k = 0;
  for (; k + 8 <= n; k += 8) {
    f4 a = F4(x + k), b = F4(x + k + 4);
    UNROLL for (int o = 0; o < O; o++) {
      f4 words = F4(w + o * n + k);
      acc[o] = MADD(a, wasm_i32x4_shl(words, 16), acc[o]);
      acc[o] = MADD(b, wasm_v128_and(words, high), acc[o]);
    }
  }
  // The tail is in plain order; a group of four still goes through the lanes, as in the float32 tile.
  if (k + 4 <= n) {
    UNROLL for (int o = 0; o < O; o++) {
      f4 words = wasm_i32x4_shl(wasm_u32x4_load16x4(w + o * n + k), 16);
      acc[o] = MADD(F4(x + k), words, acc[o]);
    }
    k += 4;
  }
  UNROLL for (int o = 0; o < O; o++) {
    float sum = sum4(acc[o]);
    for (u32 t = k; t < n; t++) sum += x[t] * bf16(w[o * n + t]);
    out[o] = sum;
  }
}

INLINE void tileQ8(const int R, const int O, const Quantized* x, const i8* w, const float* scales, u32 blocks,
                   float* const* out) {
  f4 acc[R][O];
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int o = 0; o < O; o++) acc[r][o] = zero4();
  for (u32 b = 0; b < blocks; b++) {
    UNROLL for (int o = 0; o < O; o++) {
      const i8* p = w + (o * blocks + b) * Q8_BLOCK;
      v128_t w0 = wasm_i16x8_load8x8(p), w1 = wasm_i16x8_load8x8(p + 8);
      v128_t w2 = wasm_i16x8_load8x8(p + 16), w3 = wasm_i16x8_load8x8(p + 24);
      UNROLL for (int r = 0; r < R; r++) {
        const i16* q = x[r].values + b * Q8_BLOCK;
        v128_t s = wasm_i32x4_dot_i16x8(w0, F4(q));
        s = wasm_i32x4_add(s, wasm_i32x4_dot_i16x8(w1, F4(q + 8)));
        s = wasm_i32x4_add(s, wasm_i32x4_dot_i16x8(w2, F4(q + 16)));
        s = wasm_i32x4_add(s, wasm_i32x4_dot_i16x8(w3, F4(q + 24)));
        acc[r][o] = MADD(wasm_f32x4_convert_i32x4(s), splat4(x[r].scales[b] * scales[o * blocks + b]), acc[r][o]);
      }
    }
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int o = 0; o < O; o++) out[r][o] = sum4(acc[r][o]);
}

// Sums of four vectors' lanes, each in the order of sum4.
INLINE f4 sum4x4(f4 a, f4 b, f4 c, f4 d) {
  f4 ab = ADD(wasm_i32x4_shuffle(a, b, 0, 4, 1, 5), wasm_i32x4_shuffle(a, b, 2, 6, 3, 7));
  f4 cd = ADD(wasm_i32x4_shuffle(c, d, 0, 4, 1, 5), wasm_i32x4_shuffle(c, d, 2, 6, 3, 7));
  return ADD(wasm_i32x4_shuffle(ab, cd, 0, 1, 4, 5), wasm_i32x4_shuffle(ab, cd, 2, 3, 6, 7));
}

// sums[o] of one row of x and a float32 panel: batch 1, which reads the panel once.
static void panelF32(const float* x, const float* w, u32 n, float* out) {
  f4 acc[PANEL];
  UNROLL for (int o = 0; o < PANEL; o++) acc[o] = zero4();
  for (u32 k = 0; k < n; k += 4, w += 4 * PANEL) {
    f4 a = F4(x + k);
    UNROLL for (int o = 0; o < PANEL; o++) acc[o] = MADD(a, F4(w + 4 * o), acc[o]);
  }
  STORE(out, sum4x4(acc[0], acc[1], acc[2], acc[3]));
  STORE(out + 4, sum4x4(acc[4], acc[5], acc[6], acc[7]));
}

// out[0 … 8) for one row of x and a bf16 panel.
static void panelBf16(const float* x, const u16* w, u32 n, float* out) {
  f4 acc[PANEL];
  f4 high = wasm_i32x4_const_splat((i32)0xffff0000);
  UNROLL for (int o = 0; o < PANEL; o++) acc[o] = zero4();
  for (u32 k = 0; k < n; k += 8, w += 8 * PANEL) {
    f4 a = F4(x + k), b = F4(x + k + 4);
    UNROLL for (int o = 0; o < PANEL; o++) {
      f4 words = F4(w + 8 * o);
      acc[o] = MADD(a, wasm_i32x4_shl(words, 16), acc[o]);
      acc[o] = MADD(b, wasm_v128_and(words, high), acc[o]);
    }
  }
  STORE(out, sum4x4(acc[0], acc[1], acc[2], acc[3]));
  STORE(out + 4, sum4x4(acc[4], acc[5], acc[6], acc[7]));
}

// n columns of a bf16 panel as those of a float32 panel.
static void unpackPanel(const u16* w, float* out, u32 n) {
  f4 high = wasm_i32x4_const_splat((i32)0xffff0000);
  for (u32 k = 0; k < n; k += 8, w += 8 * PANEL, out += 8 * PANEL) {
    UNROLL for (int o = 0; o < PANEL; o++) {
      f4 words = F4(w + 8 * o);
      STORE(out + 4 * o, wasm_i32x4_shl(words, 16));
      STORE(out + 4 * PANEL + 4 * o, wasm_v128_and(words, high));
    }
  }
}

// sums[r][o] (+)= x[r] · w[o] over n columns, R rows of x and O rows of a float32 panel.
INLINE void addBlock(const int R, const int O, const float* const* x, const float* w, u32 n, f4* sums, int first) {
  f4 acc[R][O];
  if (first) UNROLL for (int r = 0; r < R; r++) UNROLL for (int o = 0; o < O; o++) acc[r][o] = zero4();
  else UNROLL for (int r = 0; r < R; r++) UNROLL for (int o = 0; o < O; o++) acc[r][o] = F4(sums + r * PANEL + o);
  for (u32 k = 0; k < n; k += 4, w += 4 * PANEL) {
    f4 a[R];
    UNROLL for (int r = 0; r < R; r++) a[r] = F4(x[r] + k);
    UNROLL for (int o = 0; o < O; o++) {
      f4 b = F4(w + 4 * o);
      UNROLL for (int r = 0; r < R; r++) acc[r][o] = MADD(a[r], b, acc[r][o]);
    }
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int o = 0; o < O; o++) STORE(sums + r * PANEL + o, acc[r][o]);
}

// A panel against all rows of x.
// 1. A block of the panel's columns at a time, 1 KiB as it lies in memory, against every row: while the rows after the
//    first find the block in the nearest cache, the processor's prefetcher fetches the next one. A whole panel a row
//    would wait for memory during the first row and leave it idle during the others.
// 2. Eight sums of four lanes at a time: a wider tile would not fit the 15 registers that V8 hands out. Between blocks
//    they wait in `scratch`, so each is added up in the order of columns, whatever the number of rows.
static void columnsPanel(const Matrix* w, u32 j, const Rows* rows, float* scratch) {
  const float* x[MAX_ROWS];
  u32 n = w->i, count = rows->n, block = w->dtype == W_BF16 ? BLOCK_BF16 : BLOCK_F32;
  f4* sums = (f4*)(scratch + BLOCK_BF16 * PANEL);
  for (u32 r = 0; r < count; r++) x[r] = xRow(rows, r);
  for (u32 k = 0; k < n; k += block) {
    u32 columns = n - k < block ? n - k : block, r = 0;
    const float* panel = (const float*)w->data + j * n + k * PANEL;
    if (w->dtype == W_BF16) {
      unpackPanel((const u16*)w->data + j * n + k * PANEL, scratch, columns);
      panel = scratch;
    }
    for (; r + 2 <= count; r += 2) {
      const float* pair[2] = {x[r] + k, x[r + 1] + k};
      addBlock(2, 4, pair, panel, columns, sums + r * PANEL, k == 0);
      addBlock(2, 4, pair, panel + 16, columns, sums + r * PANEL + 4, k == 0);
    }
    if (r < count) {
      const float* last[1] = {x[r] + k};
      addBlock(1, 8, last, panel, columns, sums + r * PANEL, k == 0);
    }
  }
  for (u32 r = 0; r < count; r++, sums += PANEL) {
    float* out = outRow(rows, r) + j;
    STORE(out, sum4x4(sums[0], sums[1], sums[2], sums[3]));
    STORE(out + 4, sum4x4(sums[4], sums[5], sums[6], sums[7]));
  }
}

// sums[r][o] (+)= x[r] · w[o] over n columns, R rows of x and O of the WIDE rows of weights.
INLINE void addWide(const int R, const int O, const float* const* x, u32 k, const float* w, u32 n, f4* sums, int first) {
  f4 acc[R][O];
  const float* at[R];
  UNROLL for (int r = 0; r < R; r++) at[r] = x[r] + k;
  if (first) UNROLL for (int r = 0; r < R; r++) UNROLL for (int o = 0; o < O; o++) acc[r][o] = zero4();
  else UNROLL for (int r = 0; r < R; r++) UNROLL for (int o = 0; o < O; o++) acc[r][o] = F4(sums + r * WIDE + o);
  ROLLED for (const float* end = at[0] + n; at[0] != end; w += 4 * WIDE) {
    f4 a[R];
    UNROLL for (int r = 0; r < R; r++) a[r] = F4(at[r]), at[r] += 4;
    UNROLL for (int o = 0; o < O; o++) {
      f4 b = F4(w + 4 * o);
      UNROLL for (int r = 0; r < R; r++) acc[r][o] = MADD(a[r], b, acc[r][o]);
    }
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int o = 0; o < O; o++) STORE(sums + r * WIDE + o, acc[r][o]);
}

// Three bf16 panels against up to WIDE_ROWS rows of x, three by three: nine sums and six operands are what V8 has
// registers for. Three streams of weights are slower where few rows wait for memory.
static void columnsWide(const Matrix* w, u32 j, const Rows* rows, u32 first, u32 count, float* scratch) {
  const float* x[WIDE_ROWS];
  u32 n = w->i;
  f4 *sums = (f4*)(scratch + BLOCK_WIDE * WIDE), high = wasm_i32x4_const_splat((i32)0xffff0000);
  for (u32 r = 0; r < count; r++) x[r] = xRow(rows, first + r);
  for (u32 k = 0; k < n; k += BLOCK_WIDE) {
    u32 columns = n - k < BLOCK_WIDE ? n - k : BLOCK_WIDE;
    for (u32 p = 0; p < WIDE / PANEL; p++) {
      const u16* from = (const u16*)w->data + (j + p * PANEL) * n + k * PANEL;
      float* to = scratch + p * 4 * PANEL;
      for (u32 c = 0; c < columns; c += 8, from += 8 * PANEL, to += 8 * WIDE) {
        UNROLL for (int o = 0; o < PANEL; o++) {
          f4 words = F4(from + 8 * o);
          STORE(to + 4 * o, wasm_i32x4_shl(words, 16));
          STORE(to + 4 * WIDE + 4 * o, wasm_v128_and(words, high));
        }
      }
    }
    for (u32 r = 0, some; r < count; r += some) {
      const float* const* at = x + r;
      const float* panels = scratch;
      f4* to = sums + r * WIDE;
      some = together(count - r);
      if (some == 3)
        for (u32 o = 0; o < WIDE; o += 3) addWide(3, 3, at, k, panels + 4 * o, columns, to + o, k == 0);
      else if (some == 2)
        for (u32 o = 0; o < WIDE; o += 4) addWide(2, 4, at, k, panels + 4 * o, columns, to + o, k == 0);
      else
        for (u32 o = 0; o < WIDE; o += 8) addWide(1, 8, at, k, panels + 4 * o, columns, to + o, k == 0);
    }
  }
  for (u32 r = 0; r < count; r++) {
    float* out = outRow(rows, first + r) + j;
    for (u32 o = 0; o < WIDE; o += 4, sums += 4) STORE(out + o, sum4x4(sums[0], sums[1], sums[2], sums[3]));
  }
}

static void unpackBf16(const u16* w, float* out, u32 n) {
  f4 high = wasm_i32x4_const_splat((i32)0xffff0000);
  u32 k = 0;
  for (; k + 8 <= n; k += 8) {
    f4 words = F4(w + k);
    STORE(out + k, wasm_i32x4_shl(words, 16));
    STORE(out + k + 4, wasm_v128_and(words, high));
  }
  for (; k < n; k++) out[k] = bf16(w[k]);
}

void unpackRow(const Matrix* w, u32 row, float* out) {
  u32 n = w->i;
  if (w->packed && row < w->o / PANEL * PANEL) {
    u32 bf = w->dtype == W_BF16, step = bf ? 8 : 4;
    const u8* at = (const u8*)w->data + row / PANEL * PANEL * n * (bf ? 2 : 4) + row % PANEL * 16;
    for (u32 k = 0; k < n; k += step, at += 16 * PANEL) {
      if (bf) unpackBf16((const u16*)at, out + k, 8);
      else STORE(out + k, F4(at));
    }
  } else if (w->dtype == W_F32) {
    const float* data = (const float*)w->data + row * n;
    for (u32 k = 0; k < n; k++) out[k] = data[k];
  } else if (w->dtype == W_BF16) {
    unpackBf16((const u16*)w->data + row * n, out, n);
  } else {
    u32 blocks = blocksOf(n);
    const i8* data = (const i8*)w->data + row * blocks * Q8_BLOCK;
    const float* scales = (const float*)w->scales + row * blocks;
    for (u32 k = 0; k < n; k++) out[k] = data[k] * scales[k / Q8_BLOCK];
  }
}

// Eight or four weight rows against all rows of x; `w` is float32.
static void columnsF32(const float* w, u32 n, u32 j, int count, const Rows* rows) {
  u32 r = 0;
  if (count == 8 && rows->n == 1) {
    const float* x[1] = {xRow(rows, 0)};
    float* out[1] = {outRow(rows, 0) + j};
    tileF32(1, 8, x, w, n, out);
    return;
  }
  for (int o = 0; o < count;) {
    int four = count - o >= 4;
    for (r = 0; r + 2 <= rows->n && four; r += 2) {
      const float* x[2] = {xRow(rows, r), xRow(rows, r + 1)};
      float* out[2] = {outRow(rows, r) + j + o, outRow(rows, r + 1) + j + o};
      tileF32(2, 4, x, w + o * n, n, out);
    }
    for (r = four ? r : 0; r < rows->n; r++) {
      const float* x[1] = {xRow(rows, r)};
      float* out[1] = {outRow(rows, r) + j + o};
      if (four) tileF32(1, 4, x, w + o * n, n, out);
      else tileF32(1, 1, x, w + o * n, n, out);
    }
    o += four ? 4 : 1;
  }
}

static void columnsBf16(const u16* w, u32 n, u32 j, int count, const Rows* rows) {
  for (u32 r = 0; r < rows->n; r++) {
    const float* x = xRow(rows, r);
    float* out = outRow(rows, r) + j;
    if (count == 8) tileBf16(8, x, w, n, out);
    else
      for (int o = 0; o < count; o++) tileBf16(1, x, w + o * n, n, out + o);
  }
}

static Quantized quantizedRow(const Rows* rows, u32 row, u32 blocks) {
  u32 at = rows->list ? (u32)rows->list[row] / rows->xDivide : row;
  at *= rows->quantized.stride * blocks;
  Quantized q = {rows->quantized.values + at * Q8_BLOCK, rows->quantized.scales + at, 0};
  return q;
}

static void columnsQ8(const Matrix* w, u32 j, int count, const Rows* rows) {
  u32 blocks = blocksOf(w->i);
  for (int o = 0; o < count;) {
    int four = count - o >= 4;
    const i8* data = (const i8*)w->data + (j + o) * blocks * Q8_BLOCK;
    const float* scales = (const float*)w->scales + (j + o) * blocks;
    u32 r = 0;
    for (; r + 2 <= rows->n && four; r += 2) {
      Quantized x[2] = {quantizedRow(rows, r, blocks), quantizedRow(rows, r + 1, blocks)};
      float* out[2] = {outRow(rows, r) + j + o, outRow(rows, r + 1) + j + o};
      tileQ8(2, 4, x, data, scales, blocks, out);
    }
    for (; r < rows->n; r++) {
      Quantized x[1] = {quantizedRow(rows, r, blocks)};
      float* out[1] = {outRow(rows, r) + j + o};
      if (four) tileQ8(1, 4, x, data, scales, blocks, out);
      else tileQ8(1, 1, x, data, scales, blocks, out);
    }
    o += four ? 4 : 1;
  }
}

void product(const Matrix* w, u32 from, u32 to, const Rows* rows, float* scratch) {
  u32 n = w->i;
  if (w->packed) {
    u32 bytes = w->dtype == W_BF16 ? n * 2 : n * 4;
    *(volatile u32*)scratch = touchPages((const u8*)w->data + from * bytes, (const u8*)w->data + to * bytes, 2);
  }
  if (w->packed && rows->n >= LEAST_WIDE && w->dtype == W_BF16) {
    for (; from + WIDE <= to; from += WIDE) {
      u32 runs = (rows->n + WIDE_ROWS - 1) / WIDE_ROWS, each = (rows->n + runs - 1) / runs;
      for (u32 r = 0; r < rows->n; r += each)
        columnsWide(w, from, rows, r, rows->n - r < each ? rows->n - r : each, scratch);
    }
  }
  for (u32 j = from; j < to; j += 8) {
    int count = to - j < 8 ? (int)(to - j) : 8;
    if (w->packed && count == PANEL) {
      if (rows->n >= 3) columnsPanel(w, j, rows, scratch);
      for (u32 r = 0; r < rows->n && rows->n < 3; r++) {
        if (w->dtype == W_F32) panelF32(xRow(rows, r), (const float*)w->data + j * n, n, outRow(rows, r) + j);
        else panelBf16(xRow(rows, r), (const u16*)w->data + j * n, n, outRow(rows, r) + j);
      }
    } else if (w->dtype == W_Q8) {
      columnsQ8(w, j, count, rows);
    } else if (w->dtype == W_F32) {
      columnsF32((const float*)w->data + j * n, n, j, count, rows);
    } else if (rows->n < 3) {
      columnsBf16((const u16*)w->data + j * n, n, j, count, rows);
    } else {
      for (int o = 0; o < count; o++) unpackBf16((const u16*)w->data + (j + o) * n, scratch + o * n, n);
      columnsF32(scratch, n, j, count, rows);
    }
  }
}

// Row-major rows of `vectors` · 16 bytes to panels, in place; `space` holds a panel.
__attribute__((export_name("packRows"))) void packRows(u8* data, u8* space, u32 rows, u32 vectors) {
  u32 bytes = PANEL * vectors * 16;
  for (u32 row = 0; row + PANEL <= rows; row += PANEL, data += bytes) {
    __builtin_memcpy(space, data, bytes);
    for (u32 v = 0; v < vectors; v++)
      for (u32 o = 0; o < PANEL; o++) STORE(data + (v * PANEL + o) * 16, F4(space + (o * vectors + v) * 16));
  }
}
