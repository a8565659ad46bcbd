// Parts of a split row tile merged by all blocks that made them, each a share of the rows: no second kernel, and nothing that one block
// reads alone.
//
// 1. A block stages its part in shared memory, 16-bit rows with a scale each, and hands over the rows that others merge, through memory: the
//    values, and after them the row's log-sum-exp, which others wait for.
// 2. It merges its own rows: see owned_rows.h.
// 3. The last part of a tile may be the first thing that its block does. It owns no rows then, since it would wait for the others' end.
// 4. Blocks that wait for each other have to run at once. Those of lower parts start later, part 0 last: once it has started, all have. So
//    an owner looks whether it has, while there is work to do still; if not, it gives its rows up. Part 0 asks all owners and merges the
//    rows of those that gave up, so whoever waits without end waits for blocks that were started before it.
// 5. Who takes a log-sum-exp fills its place with kNothing, and who reads a flag of (4) clears it: memory is as it was between launches.
#pragma once
#include "output.h"
#include "owned_rows.h"
#include "producer.h"

namespace flashmla::decode {

constexpr int kPatience = 64;  // times that an owner looks for part 0

struct ShareStorage : SharedStorage {
  uint64_t settled;     // whether this block owns rows
  uint64_t collected;   // part 0: who gave up its rows
  int owns;
  int orphaned;         // whether any did
  uint32_t orphans[8];  // a bit for each part
};
static_assert(sizeof(ShareStorage) + 1024 <= 232448, "shared memory of one block");

__device__ __forceinline__ void init_share(ShareStorage& sh, int lane) {
  if (lane == 0) {
    ptx::mbarrier_init(ptx::smem_address(&sh.settled), 1);
    ptx::mbarrier_init(ptx::smem_address(&sh.collected), 1);
  }
  if (lane < 8) sh.orphans[lane] = 0;
}

// Flags in memory, a word for each block: that it has started, and what an owner has decided.
constexpr uint32_t kOwns = 1, kGaveUp = 2;
__device__ __forceinline__ uint32_t* started(const MlaDecodeParams& p, int worker) { return p.parts_ready + worker; }
__device__ __forceinline__ uint32_t* decision(const MlaDecodeParams& p, int worker) { return p.parts_ready + p.workers + worker; }
__device__ __forceinline__ uint32_t load_flag(const uint32_t* flag) {
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(flag) : "memory");
  return v;
}

// Settles whether the block owns rows of its last segment, the only one of which it may; the clerk.
__device__ __forceinline__ void settle(const MlaDecodeParams& p, ShareStorage& sh, int worker, int last) {
  const int lane = threadIdx.x & 31;
  const TileParts tile(p, sh.places[last & 3], sh.at.overhead, worker);
  if (sh.note[last & 1].any && tile.parts > 1 && tile.index < tile.owners) {
    if (lane == 0) {
      bool owns = tile.index == 0;
      for (int asked = 0; !owns && asked < kPatience; ++asked) owns = load_flag(started(p, tile.first)) != 0;
      if (tile.index > 0) __stcg(decision(p, worker), owns ? kOwns : kGaveUp);
      sh.owns = owns;
      ptx::mbarrier_arrive(ptx::smem_address(&sh.settled));
    }
    if (tile.index == 0) {
      bool orphaned = false;
      for (int part = 1 + lane; part < tile.owners; part += 32) {
        uint32_t* flag = decision(p, tile.worker(part));
        uint32_t decided;
        while ((decided = load_flag(flag)) == 0) __nanosleep(200);
        __stcg(flag, 0u);
        orphaned |= decided == kGaveUp;
        if (decided == kGaveUp) atomicOr(&sh.orphans[part >> 5], 1u << (part & 31));
      }
      orphaned = __any_sync(0xffffffffu, orphaned);
      if (lane == 0) {
        sh.orphaned = orphaned;
        ptx::mbarrier_arrive(ptx::smem_address(&sh.collected));
      }
    }
  }
  if (lane == 0) __stcg(started(p, worker), 0u);
}

// Two floats as one access, as they are loaded in owned_rows.h.
__device__ __forceinline__ void store_released(float2* pair, const float2& v) {
  asm volatile("{\n.reg .b64 both;\nmov.b64 both, {%1, %2};\nst.release.gpu.global.b64 [%0], both;\n}\n" ::"l"(pair), "f"(v.x), "f"(v.y) : "memory");
}

// Rows of the tile outside of [begin, end), for other blocks.
__device__ __forceinline__ void hand_over_rows(const MlaDecodeParams& p, const SharedStorage& sh, int slot, uint32_t staged, int rows, int begin,
                                               int end, int warp, int lane) {
  const auto others = [&](int row) { return row < rows && (row < begin || row >= end); };
#pragma unroll 1
  for (int first = warp * 8; first < min(warp * 8 + 8, rows); first += 4) {
    uint4 word[4][2];
#pragma unroll
    for (int u = 0; u < 4; ++u) {
#pragma unroll
      for (int half = 0; half < 2; ++half) word[u][half] = ptx::load_shared16(staged_row(staged, first + u, lane) + half * kStagedHalf);
    }
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      if (!others(first + u)) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) __stcg(row_in_memory(p, slot, first + u, lane) + half * 32, word[u][half]);
    }
  }
  __syncwarp();
  const int row = warp * 8 + lane;
  if (lane < 8 && others(row)) store_released(lse_in_memory(p, slot, row), reinterpret_cast<const float2*>(sh.p1)[row]);
}

// Merges this block's rows of a tile in several parts, and hands over the others. All consumers. staging: 64 KiB of shared memory, free again
// afterwards.
__device__ __forceinline__ void merge_shared(const MlaDecodeParams& p, ShareStorage& sh, const Segment& seg, const TileParts& tile, int first_row,
                                             uint8_t* staging, const float (&o)[128], const float (&m)[2], float (&l)[2]) {
  const int warp = __shfl_sync(0xffffffffu, int(threadIdx.x) >> 5, 0), lane = threadIdx.x & 31;
  const uint32_t staged = ptx::smem_address(staging);
  {
    const RowFactors factors = finish_rows(sh, warp >> 2, true, o, m, l);
    if (warp < 4 && (lane & 3) == 0) {  // P1's place is idle between segments
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        reinterpret_cast<float2*>(sh.p1)[warp * 16 + r * 8 + (lane >> 2)] = make_float2(factors.lse2[r], factors.back[r]);
      }
    }
    stage_rows<false>(staged + warp * kStagedBytes, factors.normalize, o, lane);
  }
  bool owns = tile.index < tile.owners;
  if (owns) {
    ptx::mbarrier_wait(ptx::smem_address(&sh.settled), 0);
    owns = uniform(sh.owns) != 0;
  }
  ptx::bar_sync(kBothConsumers, kConsumerThreads);
  const int rows = min(seg.shape.s_q * p.h_q - first_row, kRows);
  const auto begin_of = [&](int part) { return first_row_of(part, rows, tile.owners); };
  hand_over_rows(p, sh, tile.slot(tile.index), staged, rows, owns ? begin_of(tile.index) : 0, owns ? begin_of(tile.index + 1) : 0, warp, lane);
  const int64_t out_row = int64_t(seg.shape.query_start) * p.h_q + first_row;
  bool asked = false;
#pragma unroll 1
  for (int owner = tile.index; owns && owner < tile.owners;) {
    const int begin = begin_of(owner), end = begin_of(owner + 1);
    if (begin < end) merge_rows(p, sh, tile, owner == tile.index ? owner : -1, staging, begin, end, out_row, warp, lane);
    if (tile.index > 0) break;
    if (!asked) ptx::mbarrier_wait(ptx::smem_address(&sh.collected), 0);
    asked = true;
    if (!sh.orphaned) break;
    while (++owner < tile.owners && (sh.orphans[owner >> 5] >> (owner & 31) & 1) == 0) {
    }
    ptx::bar_sync(kBothConsumers, kConsumerThreads);  // sums of warps are read
  }
  ptx::bar_sync(kBothConsumers, kConsumerThreads);
}

}  // namespace flashmla::decode
