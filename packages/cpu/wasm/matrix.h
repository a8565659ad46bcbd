// Weights in shared memory, and the one tile that every product is made of.
#pragma once
#include "simd.h"

enum { W_F32, W_BF16, W_Q8 };
enum { Q8_BLOCK = 32 };

// `[o, i]` row-major. Mirrored by src/fast/weight.ts.
//  f32   rows of i floats
//  bf16  rows of i words; each whole group of 8 is stored 0 4 1 5 2 6 3 7, so that a shift and a mask widen it in order
//  q8    rows of ceil(i / 32) blocks of 32 int8, zero-padded; one float scale a block at `scales`
// Packed f32 and bf16: whole groups of PANEL rows are stored 16 bytes of each row in turn, so that a product of eight
// rows reads memory in one sequence; the rows left over follow as they are. Asks for rows of whole 32 bytes.
typedef struct {
  u32 dtype, data, scales, o, i, packed;
} Matrix;

enum { PANEL = 8 };

// Rows of activations quantized to 16 bits in blocks of 32, for q8 products: values, then one scale a block.
typedef struct {
  const i16* values;
  const float* scales;
  u32 stride;  // quantized rows from one row of the product to the next
} Quantized;

INLINE u32 blocksOf(u32 i) { return (i + Q8_BLOCK - 1) / Q8_BLOCK; }

// Operands of out[r][j] = Σ_k x[r][k] · w[j][k]. Row r of the product is row list[r] of both x (divided by xDivide) and
// out, or row r where there is no list.
typedef struct {
  const float* x;
  u32 xStride;
  Quantized quantized;
  float* out;
  u32 outStride;
  const i32* list;
  u32 xDivide;
  u32 n;
} Rows;

// Rows of one product.
enum { MAX_ROWS = 64 };

// Weight rows [from, to), a multiple of 8 apart except at the end, by up to MAX_ROWS rows; `scratch` holds 8 unpacked
// weight rows, and sums of 128 bytes for each row.
void product(const Matrix* w, u32 from, u32 to, const Rows* rows, float* scratch);

void unpackRow(const Matrix* w, u32 row, float* out);
