// Parts of a split row tile merged by all blocks that made them, each a share of the rows: no second kernel, and nothing that one block
// reads alone.
//
// 1. A block stages its part in shared memory, 16-bit rows with a scale each, and hands over the rows that others merge, through memory: the
//    values, and after them the row's log-sum-exp, which others wait for.
// 2. It merges its own rows: a warp takes the parts of a row, or several warps do where rows are few. Parts are added in their order, so
//    results do not depend on timing.
// 3. The last part of a tile may be the first thing that its block does. It owns no rows then, since it would wait for the others' end.
// 4. Blocks that wait for each other have to run at once. Those of lower parts start later, part 0 last: once it has started, all have. So
//    an owner looks whether it has, while there is work to do still; if not, it gives its rows up. Part 0 asks all owners and merges the
//    rows of those that gave up, so whoever waits without end waits for blocks that were started before it.
// 5. Who takes a log-sum-exp fills its place with kNothing, and who reads a flag of (4) clears it: memory is as it was between launches.
#pragma once
#include "../../common/discard.h"
#include "output.h"
#include "producer.h"
#include "warp_share.h"

namespace flashmla::decode {

constexpr int kLaneValues = 16;             // of a row: columns 8 lane + 0 .. 7 of both halves
constexpr int kPatience = 16;               // times that an owner looks for part 0

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

// The weighted sum of some parts of a row, relative to the largest log-sum-exp of them.
struct RowSum {
  float v[kLaneValues] = {};
  float most = -INFINITY, total = 0.f;

  // Values of a part in f16, times its weight and scale.
  __device__ __forceinline__ void add(float factor, const uint4 (&halves)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t words[4] = {halves[half].x, halves[half].y, halves[half].z, halves[half].w};
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float2 two = __half22float2(*reinterpret_cast<const __half2*>(&words[c]));
        v[half * 8 + c * 2] += factor * two.x;
        v[half * 8 + c * 2 + 1] += factor * two.y;
      }
    }
  }
};

// The parts of a tile, and which of them this block has.
struct TileParts {
  int index, parts, owners;  // the first `owners` parts merge rows
  int first, step;           // block of part 0, counted as workers are, and from there to the next

  __device__ __forceinline__ TileParts(const MlaDecodeParams& p, const PartPlace& place, int overhead, int worker)
      : index(place.index), parts(place.parts), step(p.tiles_per_group) {
    owners = closing_parts(parts, overhead);
    first = worker - index * step;
  }
  __device__ __forceinline__ int worker(int part) const { return first + part * step; }
  __device__ __forceinline__ int slot(int part) const { return partial_slot(worker(part), part == 0); }
};

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

constexpr int kSlotWords = kRows * 64;  // of 16 bytes

// Where a part's rows are: in memory by slot, or staged in this block's shared memory.
__device__ __forceinline__ uint4* row_in_memory(const MlaDecodeParams& p, int slot, int row, int lane) {
  return static_cast<uint4*>(p.partial_out) + (int64_t(slot) * kRows + row) * 64 + lane;
}
__device__ __forceinline__ float2* lse_in_memory(const MlaDecodeParams& p, int slot, int row) { return p.partial_lse + slot * kRows + row; }
// Of 16 bytes a lane in each half of the columns, which stand 32 KiB apart.
__device__ __forceinline__ uint32_t staged_row(uint32_t staged, int row, int lane) {
  return staged_chunk(staged + (row >> 4) * kStagedBytes, row & 15, lane);
}
constexpr int kStagedHalf = 4 * kStagedBytes;

__device__ __forceinline__ uint4 load_word(const uint4* word) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(word) : "memory");
  return v;
}
// Two floats as one access: what is read is whole.
__device__ __forceinline__ void store_released(float2* pair, const float2& v) {
  asm volatile("{\n.reg .b64 both;\nmov.b64 both, {%1, %2};\nst.release.gpu.global.b64 [%0], both;\n}\n" ::"l"(pair), "f"(v.x), "f"(v.y) : "memory");
}
__device__ __forceinline__ float2 load_acquired(const float2* pair) {
  float2 v;
  asm volatile("{\n.reg .b64 both;\nld.acquire.gpu.global.b64 both, [%2];\nmov.b64 {%0, %1}, both;\n}\n" : "=f"(v.x), "=f"(v.y) : "l"(pair) : "memory");
  return v;
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

// A finished row to out and lse.
__device__ __forceinline__ void write_row(const MlaDecodeParams& p, int64_t out_row, int lane, const RowSum& sum) {
  const float factor = inverse(sum.total);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t first = out_row * kValueWidth + half * 256 + lane * 8;
    const auto value = [&](int i) { return sum.v[half * 8 + i] * factor; };
    if (p.out_dtype == FLASHMLA_F32) {
      float4* out = reinterpret_cast<float4*>(static_cast<float*>(p.out) + first);
      out[0] = make_float4(value(0), value(1), value(2), value(3));
      out[1] = make_float4(value(4), value(5), value(6), value(7));
    } else {
      const bool bf16 = p.out_dtype == FLASHMLA_BF16;
      const auto pack = [&](int i) { return bf16 ? Bf16::pack(value(i), value(i + 1)) : F16::pack(value(i), value(i + 1)); };
      *reinterpret_cast<uint4*>(static_cast<uint16_t*>(p.out) + first) = make_uint4(pack(0), pack(2), pack(4), pack(6));
    }
  }
  if (lane == 0) p.lse[out_row] = natural_lse(sum.most, sum.total);
}

// Two columns of a finished row.
__device__ __forceinline__ void write_two(const MlaDecodeParams& p, int64_t first, float a, float b) {
  if (p.out_dtype == FLASHMLA_F32) {
    *reinterpret_cast<float2*>(static_cast<float*>(p.out) + first) = make_float2(a, b);
  } else {
    *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(p.out) + first) = p.out_dtype == FLASHMLA_BF16 ? Bf16::pack(a, b) : F16::pack(a, b);
  }
}

// Adds up the warp's rows, from kAtOnce parts of each at a time and of as many rows as make 16 words a lane, so that all that a warp takes is asked
// for at once. scaled: of the lane's part, its weight by its scale. `finish` gets each row's place and sum.
template <int kAtOnce, typename Finish>
__device__ __forceinline__ void add_rows(const MlaDecodeParams& p, const TileParts& tile, const WarpShare& share, int mine, uint32_t staged,
                                         float scaled, int lane, RowSum& sum, const Finish& finish) {
  constexpr int kRowsAtOnce = 8 / kAtOnce;
  const int64_t between = int64_t(2 * kSlotWords) * tile.step * share.step;
#pragma unroll 1
  for (int k = 0; k < share.rows; k += kRowsAtOnce) {
#pragma unroll 1
    for (int base = 0; base < share.parts; base += kAtOnce) {
      uint4 word[kRowsAtOnce][kAtOnce][2];
#pragma unroll
      for (int g = 0; g < kRowsAtOnce; ++g) {
        const int row = share.first + (k + g) * 8;
        const uint4* at = row_in_memory(p, partial_slot(tile.worker(share.sub + base * share.step), false), row, lane);
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u, at += between) {
          const int part = share.sub + (base + u) * share.step;
          const bool here = part == mine || base + u >= share.parts || k + g >= share.rows;
          const uint4* from = part == 0 ? at + kSlotWords : at;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            word[g][u][half] = here ? ptx::load_shared16(staged_row(staged, row & (kRows - 1), lane) + half * kStagedHalf) : load_word(from + half * 32);
          }
        }
      }
#pragma unroll
      for (int g = 0; g < kRowsAtOnce; ++g) {
        if (kRowsAtOnce > 1 || base == 0) {
#pragma unroll
          for (int i = 0; i < kLaneValues; ++i) sum.v[i] = 0.f;
        }
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          const float factor = __shfl_sync(0xffffffffu, scaled, (k + g) * share.lanes + base + u);
          if (base + u < share.parts) sum.add(factor, word[g][u]);
        }
        if (kRowsAtOnce > 1 && k + g < share.rows) finish(k + g, sum);
      }
    }
    if (kRowsAtOnce == 1) finish(k, sum);
  }
}

// Sums of warps that shared the parts of a row, through shared memory.
struct WarpSums {
  float v[8][32][kLaneValues + 4];  // four more: lanes start in other banks
  float most[8], total[8];
};

// The row of the warps that shared it, each the columns of some lanes. All consumers.
__device__ __forceinline__ void add_warps(const MlaDecodeParams& p, WarpSums& sums, const WarpShare& share, const RowSum& sum, int64_t out_row,
                                          int warp, int lane) {
  ptx::bar_sync(kBothConsumers, kConsumerThreads);  // nothing staged is read any more
#pragma unroll
  for (int i = 0; i < kLaneValues; i += 4) {
    *reinterpret_cast<float4*>(&sums.v[warp][lane][i]) = make_float4(sum.v[i], sum.v[i + 1], sum.v[i + 2], sum.v[i + 3]);
  }
  sums.most[warp] = sum.most;
  sums.total[warp] = sum.total;
  ptx::bar_sync(kBothConsumers, kConsumerThreads);
  if (share.rows == 0) return;
  const int first = warp - share.sub, other = first + (lane & (share.step - 1));
  float most = sums.most[other];
  for (int d = 1; d < share.step; d <<= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, d));
  const float weight = exp2_approx(sums.most[other] - base_of(most));
  float total = weight * sums.total[other];
  for (int d = 1; d < share.step; d <<= 1) total += __shfl_xor_sync(0xffffffffu, total, d);
  const float factor = inverse(total);
  const int i = (lane & 7) * 2, lanes = 32 >> (__ffs(share.step) - 1);
#pragma unroll 1
  for (int source = share.sub * lanes + (lane >> 3); source < (share.sub + 1) * lanes; source += 4) {
    float2 two = make_float2(0.f, 0.f);
    for (int w = 0; w < share.step; ++w) {
      const float2 v = *reinterpret_cast<const float2*>(&sums.v[first + w][source][i]);
      const float of_warp = __shfl_sync(0xffffffffu, weight, w);
      two.x += v.x * of_warp;
      two.y += v.y * of_warp;
    }
    write_two(p, out_row * kValueWidth + (i >> 3) * 256 + source * 8 + (i & 7), two.x * factor, two.y * factor);
  }
  if (share.sub == 0 && lane == 0) p.lse[out_row] = natural_lse(most, total);
}

// Drops what the warp has read of other blocks' parts, and written in its sums.
__device__ __forceinline__ void discard_rows(const MlaDecodeParams& p, const TileParts& tile, const WarpShare& share, int mine, int lane) {
  __syncwarp();
#pragma unroll 1
  for (int k = 0; k < share.rows; ++k) {
#pragma unroll 1
    for (int i = lane >> 3; i < share.parts; i += 4) {
      const int part = share.sub + i * share.step;
      if (part != mine) discard_line(row_in_memory(p, tile.slot(part), share.first + k * 8, (lane & 7) * kLineWords));
    }
  }
}

// Merges rows [begin, end) of a tile. All consumers. mine: the part that is staged, or none where all are in memory.
__device__ __forceinline__ void merge_rows(const MlaDecodeParams& p, SharedStorage& sh, const TileParts& tile, int mine, uint8_t* staging,
                                           int begin, int end, int64_t out_row, int warp, int lane) {
  constexpr unsigned kAll = 0xffffffffu;
  const uint32_t staged = ptx::smem_address(staging);
  const WarpShare share(tile.parts, begin, end, warp);
  // Each lane waits for one part of one row.
  float2 lse_and_scale = make_float2(-INFINITY, 0.f);
  {
    const int row_of_lane = lane >> (__ffs(share.lanes) - 1), part_of_lane = lane & (share.lanes - 1);
    if (row_of_lane < share.rows && part_of_lane < share.parts) {
      const int row = share.first + row_of_lane * 8, part = share.sub + part_of_lane * share.step;
      if (part == mine) {
        lse_and_scale = reinterpret_cast<const float2*>(sh.p1)[row];
      } else {
        float2* lse = lse_in_memory(p, tile.slot(part), row);
        do {
          lse_and_scale = load_acquired(lse);
        } while (__float_as_uint(lse_and_scale.x) == kNothing);
        const float nothing = __uint_as_float(kNothing);
        __stcg(lse, make_float2(nothing, nothing));
      }
    }
  }
  __syncwarp();
  float most = lse_and_scale.x;
  for (int d = 1; d < share.lanes; d <<= 1) most = fmaxf(most, __shfl_xor_sync(kAll, most, d));
  const float weight = exp2_approx(lse_and_scale.x - base_of(most)), scaled = weight * lse_and_scale.y;
  float total = weight;
  for (int d = 1; d < share.lanes; d <<= 1) total += __shfl_xor_sync(kAll, total, d);
  RowSum sum;
  const auto finish = [&](int k, RowSum& row_sum) {
    row_sum.most = __shfl_sync(kAll, most, k * share.lanes);
    row_sum.total = __shfl_sync(kAll, total, k * share.lanes);
    if (share.step == 1) write_row(p, out_row + share.first + k * 8, lane, row_sum);
  };
  if (share.step > 1 || share.parts > 4) {
    add_rows<8>(p, tile, share, mine, staged, scaled, lane, sum, finish);
  } else if (share.parts > 2) {
    add_rows<4>(p, tile, share, mine, staged, scaled, lane, sum, finish);
  } else {
    add_rows<2>(p, tile, share, mine, staged, scaled, lane, sum, finish);
  }
  if (share.step > 1) add_warps(p, *reinterpret_cast<WarpSums*>(staging), share, sum, out_row + share.first, warp, lane);
  if (flows_through_l2(sh.at.total)) discard_rows(p, tile, share, mine, lane);
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
