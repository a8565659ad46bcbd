// Paged latent caches: row formats as @flashmla/latent lays them out.
#pragma once
#include "simd.h"

enum { CACHE_F32, CACHE_BF16, CACHE_FP8_656, CACHE_FP8_584 };

typedef struct {
  u32 data, format, pageSize, numBlocks, rank, rope;
} Cache;

INLINE u32 rowBytes(const Cache* c) {
  u32 width = c->rank + c->rope;
  return c->format == CACHE_F32 ? width * 4 : c->format == CACHE_BF16 ? width * 2 : c->format == CACHE_FP8_656 ? 656 : 584;
}

INLINE u8* pageOf(const Cache* c, u32 block) { return (u8*)(c->data + block * c->pageSize * rowBytes(c)); }

// The row as float32: in place where the cache is float32, else decoded to `scratch`.
const float* cacheRow(const Cache* c, u32 block, u32 slot, float* scratch);

// n columns to float32.
void decodeBf16(const u16* x, float* out, u32 n);
