// Keeps the ring filled. Run by three of the left values warpgroup's warps while they have nothing else to do, which is most of
// the time: a warpgroup of its own would cost registers that the other three need. One warp loads left halves, one right halves,
// one rotary tiles; each goes through the same items by itself.
//
// The ring's items are, in the order of use, for each part of a row tile: its Q, then its KV blocks. Loads run three items ahead,
// across row tiles; rotary tiles have a ring of two. An item's place is refilled right after it was used.
// 1. `start` finds the block's piece of the line from the lengths (schedule.h) and fills the ring.
// 2. `refill` loads an item for each one that was used. When that is a new row tile, the left halves' warp tells everybody.
// 3. One copy brings 64 rows of four tiles, and the common step is a few dozen instructions of one thread: it must end before
//    the next block's P is there. What it needs stands in shared memory, for want of registers.
#pragma once
#include "config.h"

namespace flashmla::decode {

// kSmallPages: 16 or 32 tokens, several copies a block; else multiples of 64.
template <bool kSmallPages>
struct TmaLoader {
  static constexpr int kArrivals = 1, kThreads = 96;
  const MlaDecodeParams& p;
  const CUtensorMap *map_q, *map_kv, *map_tile;
  SharedStorage& sh;
  Cursor<kStages> place;   // of the next item, in a ring of two for rotary tiles
  Cursor<kWorks> works;    // of the next work
  bool ended = false;
  int owed = kStages;      // places to fill: items used since

  static __device__ __forceinline__ int lane() { return threadIdx.x & 31; }
  static __device__ __forceinline__ int region() { return __shfl_sync(0xffffffffu, (threadIdx.x >> 5) & 3, 0); }

  // Rows that see nothing: 0 and -infinity. One warp.
  __device__ __forceinline__ void write_empty(const Work& work) {
    const int bytes = p.out_dtype == FLASHMLA_F32 ? 4 : 2;
    uint4* out = reinterpret_cast<uint4*>(static_cast<char*>(p.out) + work.out_row * kValueWidth * bytes);
#pragma unroll 1
    for (int i = lane(); i < work.rows * kValueWidth * bytes / 16; i += 32) out[i] = make_uint4(0, 0, 0, 0);
#pragma unroll 1
    for (int i = lane(); i < work.rows; i += 32) p.lse[work.out_row + i] = -INFINITY;
  }

  // Publishes the next row tile with blocks; blocks = 0 when there is none. The left halves' warp.
  __device__ __forceinline__ void publish_work() {
    const int64_t group_worker = blockIdx.x / p.tiles_per_group;
    const int member = int(blockIdx.x % p.tiles_per_group);
    SegmentWalk walk = sh.walk.walk;
    const int64_t chunk = sh.walk.chunk;
    Work work;
    work.blocks = 0;
    Segment seg;
#pragma unroll 1
    while (walk.next(p, kRows, seg)) {
      const int tile = seg.group * p.tiles_per_group + member;
      work.first_row = tile * kRows;
      work.rows = min(kRows, seg.shape.s_q * p.h_q - work.first_row);
      if (work.rows <= 0) continue;
      work.out_row = int64_t(seg.shape.query_start) * p.h_q + work.first_row;
      work.blocks = seg.hi - seg.lo;
      if (work.blocks == 0) {
        write_empty(work);
        continue;
      }
      work.first_block = seg.lo;
      work.seq = seg.seq;
      work.seq_len = seg.shape.seq_len;
      work.visible = seg.shape.seq_len - seg.shape.s_q + 1;
      int64_t first_worker = group_worker;
      work.parts = 1;
      if (!seg.whole()) {
        const int64_t begin = seg.group_start + p.tile_overhead;
        first_worker = begin / chunk;
        work.parts = int((begin + seg.shape.blocks - 1) / chunk - first_worker) + 1;
      }
      work.part = int(group_worker - first_worker);
      work.first_worker = int(first_worker) * p.tiles_per_group + member;
      break;
    }
    __syncwarp();
    if (lane() == 0) {
      sh.walk.walk = walk;
      sh.works[works.slot] = work;
      arrive(sh.work_full[works.slot]);
    }
    __syncwarp();
  }

  // Turns to the next work. False: there is none.
  __device__ __forceinline__ bool next_work(int region) {
    if (ended) return false;
    if (region == kLeft) publish_work();
    wait(sh.work_full[works.slot], works.parity);
    const Work& work = sh.works[works.slot];
    works.next();
    if (work.blocks == 0) {
      ended = true;
      return false;
    }
    if (lane() == 0) {
      RegionState& at = sh.regions[region];
      const int first_token = work.first_block * kBlockTokens;
      at.left = work.blocks;
      at.page = first_token / p.page_size;
      at.row = kSmallPages ? 0 : first_token - at.page * p.page_size;
      at.slot = 32;
      at.queries = region != kRope;
      at.seq = work.seq;
      at.pages = (work.seq_len + p.page_size - 1) / p.page_size;
      at.row_base = int(work.out_row);
    }
    __syncwarp();
    return true;
  }

  // The ids of the next 32 pages, those that hold tokens: the rest of the table is never read. One warp.
  __device__ __forceinline__ void load_ids(RegionState& at) {
    const int page = at.page;
    at.ids[lane()] = page + lane() < at.pages ? p.block_table[at.seq * p.block_table_stride + page + lane()] : -1;
    __syncwarp();
    if (lane() == 0) {
      at.slot = 0;
      at.page = page + 32;
    }
    __syncwarp();
  }

  // Tiles [first, first + tiles) of the next block, once its place is free. One thread.
  __device__ __forceinline__ void load_block(RegionState& at, uint64_t& free, uint64_t& full, uint8_t* target, int first, int tiles) {
    const uint32_t bar = ptx::smem_address(&full), to = ptx::smem_address(target);
    const int slot = at.slot, row = at.row, id = at.ids[slot];
    at.left--;
    if constexpr (kSmallPages) {
      const int pages = kBlockTokens / p.page_size;
      const uint32_t page_bytes = p.page_size * kTileCols * 2;
      at.slot = slot + pages;
      int found = 0;
#pragma unroll 1
      while (found < pages && at.ids[slot + found] >= 0) ++found;
      wait(free, place.parity ^ 1);
      ptx::mbarrier_expect_tx(bar, found * page_bytes * tiles);
#pragma unroll 1
      for (int t = 0; t < tiles; ++t) {
#pragma unroll 1
        for (int i = 0; i < found; ++i)
          ptx::tma_load_4d(to + t * kTileBytes + i * page_bytes, map_tile, bar, 0, 0, first + t, at.ids[slot + i], ptx::kEvictFirst);
      }
    } else {
      const bool turn = row + kBlockTokens == p.page_size;
      at.row = turn ? 0 : row + kBlockTokens;
      at.slot = slot + turn;
      wait(free, place.parity ^ 1);
      ptx::mbarrier_expect_tx(bar, tiles * kTileBytes);
      ptx::tma_load_4d(to, tiles == 1 ? map_tile : map_kv, bar, 0, row, first, id, ptx::kEvictFirst);
    }
  }

  // Tiles 0 to 3 or 4 to 6 of a row tile's Q. One thread.
  __device__ __forceinline__ void load_queries(int half, int row) {
    const uint32_t bar = ptx::smem_address(&sh.full[place.slot][half]);
    const int first = half * kHalfTiles, end = min(first + kHalfTiles, kQueryTiles);
    wait(sh.empty[place.slot][half], place.parity ^ 1);
    ptx::mbarrier_expect_tx(bar, (end - first) * kTileBytes);
#pragma unroll 1
    for (int t = first; t < end; ++t) ptx::tma_load_2d(ptx::smem_address(sh.ring[place.slot][t]), map_q, bar, t * kTileCols, row);
  }

  __device__ __forceinline__ void refill() {
    const int region = this->region();
    RegionState& at = sh.regions[region];
#pragma unroll 1
    for (; owed > 0; --owed) {
      if (at.left == 0 && !next_work(region)) continue;
      if (at.queries != 0) {
        __syncwarp();
        if (lane() == 0) {
          load_queries(region, at.row_base);
          at.queries = 0;
        }
      } else {
        if (at.slot == 32) load_ids(at);
        if (lane() == 0) {
          if (region == kRope) {
            load_block(at, sh.rope_empty[place.slot], sh.rope_full[place.slot], sh.rope[place.slot], kRopeTile, 1);
          } else {
            load_block(at, sh.empty[place.slot][region], sh.full[place.slot][region], sh.ring[place.slot][region * kHalfTiles],
                       region * kHalfTiles, kHalfTiles);
          }
        }
      }
      __syncwarp();
      place.next();
      if (region == kRope && place.slot == kRopes) {
        place.slot = 0;
        place.parity ^= 1;
      }
    }
  }
  // The item just used was a row tile's Q, or a KV block.
  __device__ __forceinline__ void used_queries() { owed += region() != kRope; }
  __device__ __forceinline__ void used_block() { ++owed; }

  __device__ __forceinline__ void start() {
    const int region = this->region();
    if (lane() == 0) sh.regions[region].left = 0;
    __syncwarp();
    asm volatile("griddepcontrol.wait;" ::: "memory");
    if (region == kRope) owed = kRopes;
    if (region != kLeft) return;
    const int64_t group_worker = blockIdx.x / p.tiles_per_group;
    if (lane() == 0) count_launch();
    const LinePosition line = locate(p, kRows, group_worker, 0);
    if (lane() == 0) {
      sh.walk.walk = SegmentWalk(line, group_worker);
      sh.walk.chunk = line.chunk;
    }
    __syncwarp();
  }

  // Which of its launches this is, counted by the blocks themselves: a captured graph has no other way to tell.
  __device__ __forceinline__ void count_launch() {
    auto* started = reinterpret_cast<unsigned long long*>(&p.merges[p.workers].sets[0].counts);
    const uint32_t launch = uint32_t(atomicAdd(started, 1ull) / uint32_t(p.workers));
    p.merges[blockIdx.x].sets[(launch + 1) & 1] = MlaMergeSet{};
    sh.launch = launch;
  }
};

}  // namespace flashmla::decode
