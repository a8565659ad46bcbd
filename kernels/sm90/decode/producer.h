// The producer warpgroup: keeps the two KV buffers filled, region by region, as the consumers free them.
//
// 1. Take the worker's next segment; load its Q tiles once the consumers are done with the last ones.
// 2. For each 64-token block: rotary part, then the half that frees first for this buffer, then the other.
// 3. Row tiles of one sequence run as blocks side by side on the same KV, which the second finds in L2.
// One copy brings 64 rows of two tiles: what issuing a copy costs one thread would else be the bound of the whole kernel.
#pragma once
#include "config.h"

namespace flashmla::decode {

// Regions in the order the consumers free them.
__device__ constexpr int region_order(int buffer, int i) { return i == 0 ? kRope : (i == 1) == (buffer == 0) ? kLeft : kRight; }

// The worker's next segment that has blocks and rows for this member of its group.
__device__ __forceinline__ bool next_segment(SegmentWalk& walk, const LinePosition& at, const Shapes& shapes, int member, Segment& seg) {
  while (walk.next(at, shapes, seg)) {
    const int first_row = (seg.group * shapes.p.tiles_per_group + member) * kRows;
    if (seg.shape.blocks > 0 && first_row < seg.shape.s_q * shapes.p.h_q) return true;
  }
  return false;
}

// Row of the q map at which a segment's queries start.
__device__ __forceinline__ int query_row(const Shapes& shapes, const Segment& seg, int member) {
  return int(int64_t(seg.shape.query_start) * shapes.p.h_q + (seg.group * shapes.p.tiles_per_group + member) * kRows);
}

// Blocks side by side on the same KV drift apart: what one has read has to stay in L2 for the others.
__device__ __forceinline__ uint64_t kv_policy(const MlaDecodeParams& p) { return p.tiles_per_group > 1 ? ptx::kEvictLast : ptx::kEvictFirst; }

// Pages of 16, 32 or a multiple of 64 tokens: one warp, by tensor maps.
__device__ __forceinline__ void produce_tma(const MlaDecodeParams& p, const CUtensorMap* map_q, const CUtensorMap* map_kv,
                                            const CUtensorMap* map_tile, SharedStorage& sh, const LinePosition& at,
                                            const Shapes& shapes, int group_worker, int member) {
  using namespace ptx;
  const int lane = threadIdx.x & 31;
  const uint64_t policy = kv_policy(p);
  const int pages_per_block = p.page_size < kBlockTokens ? kBlockTokens / unsigned(p.page_size) : 1;
  const int blocks_per_page = p.page_size > kBlockTokens ? unsigned(p.page_size) / kBlockTokens : 1;
  SegmentWalk walk(at, group_worker);
  Segment seg;
  uint32_t empty_parity[2] = {1, 1};
  uint32_t q_parity = 1;
  while (next_segment(walk, at, shapes, member, seg)) {
    const int32_t* table = p.block_table + seg.seq * p.block_table_stride;
    // Page ids, 32 at a time and one set ahead.
    const int page_end = p.page_size == kBlockTokens ? seg.shape.blocks : ceil_div(seg.shape.seq_len, p.page_size);
    int id_base = (blocks_per_page == 1 ? seg.lo : seg.lo / unsigned(blocks_per_page)) * pages_per_block;
    int ids = id_base + lane < page_end ? table[id_base + lane] : 0;
    int next_ids = id_base + 32 + lane < page_end ? table[id_base + 32 + lane] : 0;
    mbarrier_wait(smem_address(&sh.q_empty), q_parity);
    q_parity ^= 1;
    if (lane == 0) {
      const uint32_t bar = smem_address(&sh.q_full);
      mbarrier_expect_tx(bar, kTiles * kTileBytes);
      tma_load_3d(smem_address(sh.q), map_q, bar, 0, query_row(shapes, seg, member), 0);
      if (q_parity == 0) trace(kTraceQueriesAsked);
    }
    for (int blk = seg.lo; blk < seg.hi; ++blk) {
      const int buffer = (blk - seg.lo) & 1;
      const int page_of_block = blocks_per_page == 1 ? blk : blk / unsigned(blocks_per_page);
      const int first_page = page_of_block * pages_per_block;
      if (first_page - id_base >= 32) {
        id_base += 32;
        ids = next_ids;
        next_ids = id_base + 32 + lane < page_end ? table[id_base + 32 + lane] : 0;
      }
      const int row_in_page = (blk - page_of_block * blocks_per_page) * kBlockTokens;
      const int id = __shfl_sync(0xffffffffu, ids, first_page - id_base);
      // Pages of this block that hold tokens: the rest of the table is never read and never loaded.
      const int pages = min(pages_per_block, page_end - first_page);
      const uint32_t tile_bytes = pages_per_block == 1 ? kTileBytes : uint32_t(pages * p.page_size) * kTileCols * 2;
      auto load = [&](const CUtensorMap* map, uint32_t dst, uint32_t bar, int tile, int row, int page_id) {
        tma_load_4d(dst, map, bar, 0, row, tile, page_id, policy);
      };
#pragma unroll
      for (int i = 0; i < kRegions; ++i) {
        const int region = buffer == 0 ? region_order(0, i) : region_order(1, i);
        mbarrier_wait(smem_address(&sh.empty[buffer][region]), empty_parity[buffer]);
        const int units = i == 0 ? 1 : kHalfUnits;
#pragma unroll
        for (int u = 0; u < units; ++u) {
          const int unit = region_first_unit(region) + u;
          const uint32_t bar = smem_address(&sh.full[buffer][unit]);
          if (lane == 0) mbarrier_expect_tx(bar, tile_bytes * unit_tiles(unit));
          if (pages_per_block == 1) {
            const int tile = unit * kUnitTiles;
            if (lane == 0) load(unit == kRopeUnit ? map_tile : map_kv, smem_address(sh.kv[buffer][tile]), bar, tile, row_in_page, id);
          } else {
            for (int t = unit * kUnitTiles; t < unit * kUnitTiles + unit_tiles(unit); ++t) {
              for (int page = 0; page < pages; ++page) {
                const int page_id = __shfl_sync(0xffffffffu, ids, first_page + page - id_base);
                if (lane == 0) load(map_tile, smem_address(sh.kv[buffer][t]) + page * p.page_size * 128, bar, t, 0, page_id);
              }
            }
          }
        }
      }
      empty_parity[buffer] ^= 1;
    }
  }
}

// Any page size: 128 threads gather rows with 16-byte asynchronous copies.
__device__ __forceinline__ void produce_gather(const MlaDecodeParams& p, const CUtensorMap* map_q, SharedStorage& sh,
                                               const LinePosition& at, const Shapes& shapes, int group_worker, int member) {
  using namespace ptx;
  const int thread = threadIdx.x & 127;
  SegmentWalk walk(at, group_worker);
  Segment seg;
  uint32_t empty_parity[2] = {1, 1};
  uint32_t q_parity = 1;
  int pending = -1;  // buffer * kRegions + region of the copies committed last
  auto publish = [&](int what) {
    fence_proxy_async();
    const int buffer = what / kRegions, region = what % kRegions;
    for (int u = 0; u < region_units(region); ++u) mbarrier_arrive(smem_address(&sh.full[buffer][region_first_unit(region) + u]));
  };
  const char* kv = static_cast<const char*>(p.kv);
  while (next_segment(walk, at, shapes, member, seg)) {
    // Nothing may stay unpublished while waiting for the consumers.
    cp_async_wait<0>();
    if (pending >= 0) publish(pending);
    pending = -1;
    mbarrier_wait(smem_address(&sh.q_empty), q_parity);
    q_parity ^= 1;
    if (thread == 0) {
      const uint32_t bar = smem_address(&sh.q_full);
      mbarrier_expect_tx(bar, kTiles * kTileBytes);
      tma_load_3d(smem_address(sh.q), map_q, bar, 0, query_row(shapes, seg, member), 0);
    }
    const int32_t* table = p.block_table + seg.seq * p.block_table_stride;
    const int chunk = thread & 7, first_row = thread >> 3;  // 8 chunks of 16 bytes a row, 16 rows at a time
    for (int blk = seg.lo; blk < seg.hi; ++blk) {
      const int buffer = (blk - seg.lo) & 1;
      const char* rows[4];
      uint32_t bytes[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int token = blk * kBlockTokens + r * 16 + first_row;
        const bool valid = token < seg.shape.seq_len;
        const int64_t page = valid ? table[token / p.page_size] : 0;
        rows[r] = valid ? kv + (page * p.kv_page_stride + int64_t(token % p.page_size) * p.kv_row_stride) * 2 : kv;
        bytes[r] = valid ? 16 : 0;
      }
#pragma unroll 1
      for (int i = 0; i < kRegions; ++i) {
        const int region = region_order(buffer, i);
        const uint32_t bar = smem_address(&sh.empty[buffer][region]);
        if (pending >= 0 && !mbarrier_test_wait(bar, empty_parity[buffer])) {
          cp_async_wait<0>();
          publish(pending);
          pending = -1;
        }
        mbarrier_wait(bar, empty_parity[buffer]);
        for (int t = region_first_tile(region); t < region_first_tile(region) + region_tiles(region); ++t) {
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            const int row = r * 16 + first_row;
            cp_async16(smem_address(sh.kv[buffer][t]) + row * 128 + ((chunk ^ (row & 7)) << 4), rows[r] + t * 128 + chunk * 16, bytes[r]);
          }
        }
        cp_async_commit();
        if (pending >= 0) {
          cp_async_wait<1>();
          publish(pending);
        }
        pending = buffer * kRegions + region;
      }
      empty_parity[buffer] ^= 1;
    }
  }
  cp_async_wait<0>();
  if (pending >= 0) publish(pending);
}

}  // namespace flashmla::decode
