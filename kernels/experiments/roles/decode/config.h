// Sizes, shared memory and the units of work of the Hopper decode kernel.
#pragma once
#include "../../common/schedule.h"
#include "../../include/flashmla_params.h"
#include "../ptx/barrier.h"
#include "../ptx/tma.h"
#include "../ptx/wgmma.h"

namespace flashmla::decode {

constexpr int kRows = 64;                      // query rows of a block
constexpr int kValueWidth = 512;               // d_v
constexpr int kTileCols = 64;                  // 128 bytes: one swizzle span
constexpr int kTiles = 9;                      // 64-column tiles of d_qk = 576; tile 8 is the rotary part
constexpr int kRopeTile = kTiles - 1;
constexpr int kTileBytes = 64 * kTileCols * 2; // 8 KiB, for Q and KV alike
constexpr int kHalfTiles = 4;                  // tiles of half of the values
constexpr int kHalfTokens = 32;                // scores are computed for half of a block at a time

// Warpgroups. Registers a thread: 168 at the start, then what the role needs (504 in all).
enum Role : int { kScores = 0, kValuesLeft = 1, kValuesRight = 2 };
constexpr int kThreads = 384;
constexpr int kScoresRegisters = 184;
constexpr int kValuesRegisters = 160;

// Named barriers (0 is __syncthreads).
enum NamedBarrier : int { kScoresSync = 1, kLeftSync, kRightSync, kValuesSync };

// One worker's part of one row tile.
struct Work {
  int32_t blocks;        // 64-token blocks, 1 or more; 0: no more work
  int32_t first_block;
  int32_t seq;
  int32_t seq_len;
  int32_t visible;       // tokens that the sequence's first query sees; each later query sees one more
  int32_t first_row;     // of the sequence's s_q * h_q rows
  int32_t rows;          // of the tile, 64 or fewer
  int32_t part, parts;   // this one of the tile's parts; parts > 1: partial results are merged
  int32_t first_worker;  // block that has part 0; part i is tiles_per_group * i further
  int64_t out_row;       // row of q, out and lse
};
constexpr int kWorks = 8;    // the loads run three ring items ahead of the values: at most three works
constexpr int kStages = 3;   // of the ring

// What the loads do next (loader.h): a list of items ahead of the ring, and where the walk over this block's work is.
constexpr int kQueries = -1, kEnd = -2, kNoPage = -3;  // in place of a page id
struct LoaderState {
  alignas(16) int32_t items[128];  // page id and row in it; or four ids of small pages; or kQueries and a row of q; or kEnd
  int32_t built;                   // items in the list so far
  int32_t published;               // works
  int32_t block, end, seq, pages;  // of the work in the list: next block, and its sequence's pages
  SegmentWalk walk;
  int64_t chunk;
};

struct SharedStorage {
  uint8_t ring[kStages][kTiles][kTileBytes];  // KV blocks and row tiles' Q. After a block's scores, P has the rotary tile's place
  uint8_t q_rope[kTileBytes];
  float scale[kStages][kRows];                // with a P: what it puts on the sum before it
  float sum[kRows], top[kRows];               // with a row tile's last P: the rows' sums and maxima (base 2)
  Work works[kWorks];
  Work merges[2];
  int32_t merge_state[2];
  uint32_t deserted[2];                       // 1: this block was the last to arrive at a merge, and others had left
  uint32_t launch;                            // how often this plan's kernel has run before
  uint64_t full[kStages], empty[kStages], p_full[kStages];
  uint64_t sums_free;
  uint64_t work_full[kWorks];
  LoaderState loader;
};
constexpr int kSharedBytes = 232448;          // all that a block can have
static_assert(sizeof(SharedStorage) <= kSharedBytes, "shared memory of one block");

// Place in a ring of kSlots: slot, and the parity of its barriers' phase.
template <int kSlots>
struct Cursor {
  int slot = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    if (++slot == kSlots) {
      slot = 0;
      parity ^= 1;
    }
  }
};

__device__ __forceinline__ void wait(uint64_t& bar, uint32_t parity) { ptx::mbarrier_wait(ptx::smem_address(&bar), parity); }
__device__ __forceinline__ void arrive(uint64_t& bar) { ptx::mbarrier_arrive(ptx::smem_address(&bar)); }
// One arrival for each warp, once all its lanes got here.
__device__ __forceinline__ void arrive_warp(uint64_t& bar) {
  __syncwarp();
  if ((threadIdx.x & 31) == 0) arrive(bar);
}

}  // namespace flashmla::decode
