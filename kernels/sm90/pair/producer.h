// The producer warp of a pair's block: finds the block's segments, tells the consumers, and keeps the KV stages filled with the
// block's half of the columns.
#pragma once
#include "config.h"

namespace flashmla::pair {

// The worker's next segment that has rows for this member of its group.
__device__ __forceinline__ bool next_segment(SegmentWalk& walk, const LinePosition& at, const Shapes& shapes, int member, Segment& seg) {
  while (walk.next(at, shapes, seg)) {
    if ((seg.group * shapes.p.tiles_per_group + member) * kRows < seg.shape.s_q * shapes.p.h_q) return true;
  }
  return false;
}

__device__ __forceinline__ void produce(const MlaDecodeParams& p, const CUtensorMap* map_q, const CUtensorMap* map_q_tile,
                                        const CUtensorMap* map_kv, const CUtensorMap* map_kv_tile, SharedStorage& sh,
                                        const LinePosition& at, const Shapes& shapes, int group_worker, int member, int rank) {
  using namespace ptx;
  const int lane = threadIdx.x & 31;
  const uint64_t policy = p.tiles_per_group > 1 ? kEvictLast : kEvictFirst;
  const int pages_per_block = p.page_size < kBlockTokens ? kBlockTokens / unsigned(p.page_size) : 1;
  const int blocks_per_page = p.page_size > kBlockTokens ? unsigned(p.page_size) / kBlockTokens : 1;
  SegmentWalk walk(at, group_worker);
  Segment seg;
  int stage = 0, segment = 0;
  uint32_t empty_parity = 1, q_parity = 1;
  const uint32_t q_full = smem_address(&sh.q_full);
  for (;;) {
    const bool any = next_segment(walk, at, shapes, member, seg);
    const int first_row = (seg.group * p.tiles_per_group + member) * kRows;
    const int32_t* table = p.block_table + (any ? seg.seq : 0) * p.block_table_stride;
    // Page ids, 32 at a time and one set ahead.
    const int page_end = !any ? 0 : p.page_size == kBlockTokens ? seg.shape.blocks : ceil_div(seg.shape.seq_len, p.page_size);
    int id_base = (blocks_per_page == 1 ? seg.lo : seg.lo / unsigned(blocks_per_page)) * pages_per_block;
    int ids = id_base + lane < page_end ? table[id_base + lane] : 0;
    mbarrier_wait(smem_address(&sh.q_empty), q_parity);
    q_parity ^= 1;
    if (lane == 0) {
      const PartPlace place = any ? place_of(at, seg, group_worker) : PartPlace{0, -1};
      sh.note[segment & 1] = Note{seg.shape.seq_len, seg.shape.s_q, seg.shape.blocks, seg.lo, seg.hi, seg.shape.query_start * p.h_q,
                                  first_row, place.index, place.parts, walk.pos < walk.end};
      if (any && seg.shape.blocks > 0) {
        mbarrier_expect_tx(q_full, 2 * kTiles * kTileBytes);
#pragma unroll
        for (int wg = 0; wg < 2; ++wg) {
          const int row = seg.shape.query_start * p.h_q + first_row + wg * 64;
          tma_load_3d(smem_address(sh.q[wg]), map_q, q_full, 0, row, rank * kHalfTiles);
          tma_load_3d(smem_address(sh.q[wg][kHalfTiles]), map_q_tile, q_full, 0, row, kRopeTile);
        }
      } else {
        mbarrier_arrive(q_full);
      }
      if (q_parity == 0) trace(kTraceQueriesAsked);
    }
    ++segment;
    if (!any) return;
    int next_ids = id_base + 32 + lane < page_end ? table[id_base + 32 + lane] : 0;
    for (int blk = seg.lo; blk < seg.hi; ++blk) {
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
      const uint32_t bar = smem_address(&sh.full[stage]), to = smem_address(sh.kv[stage]);
      mbarrier_wait(smem_address(&sh.empty[stage]), empty_parity);
      if (lane == 0) mbarrier_expect_tx(bar, pages_per_block == 1 ? kTiles * kTileBytes : kTiles * pages * p.page_size * kTileCols * 2);
      if (pages_per_block == 1) {
        if (lane == 0) {
          tma_load_4d(to, map_kv, bar, 0, row_in_page, rank * kHalfTiles, id, policy);
          tma_load_4d(to + 2 * kTileBytes, map_kv, bar, 0, row_in_page, rank * kHalfTiles + 2, id, policy);
          tma_load_4d(to + 4 * kTileBytes, map_kv_tile, bar, 0, row_in_page, kRopeTile, id, policy);
        }
      } else {
        for (int page = 0; page < pages; ++page) {
          const int page_id = __shfl_sync(0xffffffffu, ids, first_page + page - id_base);
          for (int t = lane; t < kTiles; t += 32) {
            tma_load_4d(to + t * kTileBytes + page * p.page_size * 128, map_kv_tile, bar, 0, 0,
                        t == kHalfTiles ? kRopeTile : rank * kHalfTiles + t, page_id, policy);
          }
        }
      }
      if (++stage == kStages) {
        stage = 0;
        empty_parity ^= 1;
      }
    }
    if (walk.pos >= walk.end) return;
  }
}

}  // namespace flashmla::pair
