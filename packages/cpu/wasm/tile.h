// A tile of a sequence's cached rows as float32, made ready a little at a time: memory works while the multiply-adds of
// the tile before do. Included by attention.c alone.
#pragma once
#include "cache.h"

enum { TILE = 96, PART_BYTES = 576 };

// Consecutive tokens of a sequence, whose rows are made ready part by part.
typedef struct {
  const Cache* cache;
  const i32* pages;
  u32 first, n, ready, column, seen;  // `ready` rows are whole, and the next one as far as `column`
  float* rows;                        // where rows are decoded
  const float *q, *qEnd;              // queries that are to be fetched first
  const float* k[TILE];
} Tile;

static void openTile(Tile* tile, const Cache* cache, const i32* pages, u32 first, u32 n) {
  tile->cache = cache, tile->pages = pages;
  tile->first = first, tile->n = n, tile->ready = 0, tile->column = 0;
  if (cache->format != CACHE_BF16) return;
  u32 bytes = rowBytes(cache), size = cache->pageSize;
  for (u32 i = first; i < first + n;) {
    u32 slot = i % size, left = first + n - i, run = size - slot < left ? size - slot : left;
    const u8* at = pageOf(cache, tile->pages[i / size]) + slot * bytes;
    tile->seen ^= touchPages(at, at + run * bytes, 1);
    i += run;
  }
}

static __attribute__((noinline)) void advancePart(Tile* tile, int needed) {
  if (tile->q < tile->qEnd && !needed) {
    u32 seen = tile->seen;
    for (u32 k = 0; k < PART_BYTES / 4 && tile->q < tile->qEnd; k += 16, tile->q += 16) seen ^= asBits(*tile->q);
    tile->seen = seen;
    return;
  }
  const Cache* cache = tile->cache;
  u32 i = tile->ready, token = tile->first + i, width = cache->rank + cache->rope, from = tile->column;
  u32 block = tile->pages[token / cache->pageSize], slot = token % cache->pageSize;
  float* to = tile->rows + i * width;
  if (cache->format == CACHE_F32) {
    const float* row = cacheRow(cache, block, slot, to);
    u32 end = needed || from + PART_BYTES / 4 > width ? width : from + PART_BYTES / 4, seen = tile->seen;
    for (u32 k = from; k < end && !needed; k += 16) seen ^= asBits(row[k]);
    tile->seen = seen, tile->k[i] = row, tile->column = end;
  } else if (cache->format == CACHE_BF16) {
    u32 end = from + PART_BYTES / 2 < width ? from + PART_BYTES / 2 : width;
    decodeBf16((const u16*)pageOf(cache, block) + slot * width + from, to + from, end - from);
    tile->k[i] = to, tile->column = end;
  } else {
    tile->k[i] = cacheRow(cache, block, slot, to), tile->column = width;
  }
  if (tile->column == width) tile->ready++, tile->column = 0;
}

// PART_BYTES more of the queries or the tile: decoded, or, where it is float32, fetched to the caches line by line.
INLINE void advance(Tile* tile) {
  if (tile->ready < tile->n) advancePart(tile, 0);
}
