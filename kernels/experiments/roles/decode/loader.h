// Keeps the ring filled. Run by two of the left values warpgroup's warps between two products: a warpgroup of its own would cost
// registers that the other three need.
//
// Items are, in the order of use, for each part of a row tile: its Q, then its KV blocks. Loads run three items ahead, across row
// tiles. An item's place is filled again right after its use.
// 1. `start` finds the block's piece of the line from the lengths (schedule.h), begins the list and fills the ring.
// 2. The first warp takes the next item from the list: one copy brings it whole, 64 rows of nine tiles. That is a few dozen
//    instructions of one thread, since it must end before the next P is there.
// 3. The second adds up to 32 blocks to the list when it gets short. When it comes to a new row tile, it tells everybody.
#pragma once
#include "config.h"

namespace flashmla::decode {

// kSmallPages: 16 or 32 tokens, several copies a block; else multiples of 64.
template <bool kSmallPages>
struct TmaLoader {
  static constexpr int kArrivals = 1;
  static constexpr int kInts = kSmallPages ? 4 : 2, kItems = 128 / kInts, kAtOnce = kItems / 2;
  const MlaDecodeParams& p;
  const CUtensorMap *map_q, *map_kv;
  SharedStorage& sh;

  static __device__ __forceinline__ int lane() { return threadIdx.x & 31; }
  static __device__ __forceinline__ int warp() { return (threadIdx.x >> 5) & 3; }

  // Rows that see nothing: 0 and -infinity. One warp.
  __device__ __forceinline__ void write_empty(const Work& work) {
    const int bytes = p.out_dtype == FLASHMLA_F32 ? 4 : 2;
    uint4* out = reinterpret_cast<uint4*>(static_cast<char*>(p.out) + work.out_row * kValueWidth * bytes);
#pragma unroll 1
    for (int i = lane(); i < work.rows * kValueWidth * bytes / 16; i += 32) out[i] = make_uint4(0, 0, 0, 0);
#pragma unroll 1
    for (int i = lane(); i < work.rows; i += 32) p.lse[work.out_row + i] = -INFINITY;
  }

  // The next row tile with blocks; blocks = 0 when there is none. One warp, every lane the same.
  __device__ __forceinline__ Work find_work(SegmentWalk& walk) {
    const int64_t group_worker = blockIdx.x / p.tiles_per_group;
    const int member = int(blockIdx.x % p.tiles_per_group);
    const int64_t chunk = sh.loader.chunk;
    Work work;
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
      return work;
    }
    work.blocks = 0;
    return work;
  }

  __device__ __forceinline__ int32_t* item(int index) { return sh.loader.items + index % kItems * kInts; }

  // Adds to the list: a new row tile's Q first, then blocks, of which those lanes past the sequence's end have no page. One warp.
  __device__ __forceinline__ void extend() {
    LoaderState& at = sh.loader;
    int built = at.built, block = at.block, end = at.end;
    if (block == end) {
      SegmentWalk walk = at.walk;
      const Work work = find_work(walk);
      const int slot = at.published % kWorks;
      __syncwarp();
      if (lane() == 0) {
        at.walk = walk;
        at.published++;
        at.end = work.blocks == 0 ? -1 : work.first_block + work.blocks;
        at.block = work.blocks == 0 ? 0 : work.first_block;
        at.seq = work.seq;
        at.pages = (work.seq_len + p.page_size - 1) / p.page_size;
        item(built)[0] = work.blocks == 0 ? kEnd : kQueries;
        item(built)[1] = int(work.out_row);
        sh.works[slot] = work;
        arrive(sh.work_full[slot]);
      }
      __syncwarp();
      built++;
      block = at.block;
      end = at.end;
    }
    const int count = min(end - block, kAtOnce - 1);
    if (lane() < count) {
      const int32_t* table = p.block_table + at.seq * p.block_table_stride;
      const int token = (block + lane()) * kBlockTokens, page = token / p.page_size;
      int32_t* to = item(built + lane());
      if constexpr (kSmallPages) {
        const int pages = kBlockTokens / p.page_size;
#pragma unroll 1
        for (int i = 0; i < 4; ++i) to[i] = i < pages && page + i < at.pages ? table[page + i] : kNoPage;
      } else {
        to[0] = table[page];
        to[1] = token - page * p.page_size;
      }
    }
    __threadfence_block();
    __syncwarp();
    if (lane() == 0) {
      at.block = block + max(count, 0);
      *const_cast<volatile int32_t*>(&at.built) = built + max(count, 0);
    }
    __syncwarp();
  }
  // Whether the list has room and is not ended. `used`: items that this warpgroup is done with; `works`: works.
  __device__ __forceinline__ bool can_extend(int used, int works) const {
    return sh.loader.end >= 0 && sh.loader.built + kAtOnce <= used + kItems - 3 && sh.loader.published - works < kWorks - 2;
  }

  // Loads an item into a stage, once that is free. One thread. False when there are no more.
  __device__ __forceinline__ void fill(int index, int slot, bool used, uint32_t parity) {
    volatile LoaderState& at = sh.loader;
    while (at.built <= index && at.end >= 0) {
    }
    if (at.built <= index) return;
    asm volatile("" ::: "memory");
    const int32_t* what = item(index);
    const int id = what[0], row = what[1];
    if (id == kEnd) return;
    const uint32_t to = ptx::smem_address(sh.ring[slot]), bar = ptx::smem_address(&sh.full[slot]);
    if (used) wait(sh.empty[slot], parity);
    if (id == kQueries) {
      ptx::mbarrier_expect_tx(bar, kTiles * kTileBytes);
      ptx::tma_load_3d(to, map_q, bar, 0, row, 0);
    } else if constexpr (!kSmallPages) {
      ptx::mbarrier_expect_tx(bar, kTiles * kTileBytes);
      ptx::tma_load_4d(to, map_kv, bar, 0, row, 0, id, ptx::kEvictFirst);
    } else {
      const uint32_t page_bytes = p.page_size * kTileCols * 2;
      int pages = 1;
#pragma unroll 1
      while (pages < 4 && what[pages] != kNoPage) ++pages;
      ptx::mbarrier_expect_tx(bar, pages * page_bytes * kTiles);
#pragma unroll 1
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll 1
        for (int i = 0; i < pages; ++i)
          ptx::tma_load_4d(to + t * kTileBytes + i * page_bytes, map_kv, bar, 0, 0, t, what[i], ptx::kEvictFirst);
      }
    }
  }

  // After item `used - 1`'s use in `slot`.
  __device__ __forceinline__ void refill(int slot, uint32_t parity, int used, int works) {
    if (warp() == 0) {
      if (lane() == 0) fill(used + kStages - 1, slot, true, parity);
    } else if (warp() == 1) {
      if (can_extend(used, works)) extend();
    }
    __syncwarp();
  }

  __device__ __forceinline__ void start() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
    if (warp() == 1) {
      const int64_t group_worker = blockIdx.x / p.tiles_per_group;
      if (lane() == 0) count_launch();
      const LinePosition line = locate(p, kRows, group_worker, 0);
      LoaderState& at = sh.loader;
      if (lane() == 0) {
        at.walk = SegmentWalk(line, group_worker);
        at.chunk = line.chunk;
        at.block = at.end = at.published = 0;
      }
      __syncwarp();
#pragma unroll 1
      do extend();
      while (at.end >= 0 && at.built <= kStages);
    } else if (warp() == 0 && lane() == 0) {
#pragma unroll 1
      for (int i = 0; i < kStages; ++i) fill(i, i, false, 0);
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
