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
#include "output.h"
#include "producer.h"

namespace flashmla::decode {

constexpr int kLaneValues = 16;             // of a row: columns 8 lane + 0 .. 7 of both halves
constexpr int kPatience = 16;               // times that an owner looks for part 0

struct ShareStorage : SharedStorage {
  uint64_t settled;     // whether this block owns rows
  uint64_t collected;   // part 0: who gave up its rows
  int owns;
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
__device__ __forceinline__ void settle(const MlaDecodeParams& p, ShareStorage& sh, int last) {
  const int lane = threadIdx.x & 31, worker = Worker(p).index;
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
      for (int part = 1 + lane; part < tile.owners; part += 32) {
        uint32_t* flag = decision(p, tile.worker(part));
        uint32_t decided;
        while ((decided = load_flag(flag)) == 0) __nanosleep(200);
        __stcg(flag, 0u);
        if (decided == kGaveUp) atomicOr(&sh.orphans[part >> 5], 1u << (part & 31));
      }
      __syncwarp();
      if (lane == 0) ptx::mbarrier_arrive(ptx::smem_address(&sh.collected));
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
  if (lane == 0) p.lse[out_row] = sum.total > 0.f ? (sum.most + __log2f(sum.total)) * kLn2 : -INFINITY;
}

// Sums of warps that shared the parts of a row, through shared memory.
struct WarpSums {
  float v[8][kLaneValues][32];
  float most[8], total[8];
};

// Merges rows [begin, end) of a tile. All consumers. mine: the part that is staged, or none where all are in memory.
__device__ __forceinline__ void merge_rows(const MlaDecodeParams& p, SharedStorage& sh, const TileParts& tile, int mine, uint8_t* staging,
                                           int begin, int end, int64_t out_row, int warp, int lane) {
  constexpr unsigned kAll = 0xffffffffu;
  constexpr int kBatch = 8;
  const uint32_t staged = ptx::smem_address(staging);
  // 1, 2, 4 or 8 warps share the parts of a row. What a warp has to take are 17 parts at most, of up to eight rows.
  const int own = end - begin, sharing = own > 4 ? 0 : own > 2 ? 1 : own > 1 ? 2 : 3;
  const int sub = warp & ((1 << sharing) - 1), step = 1 << sharing, first = begin + (warp >> sharing);
  const int parts = max(tile.parts - sub + step - 1, 0) >> sharing;
  const int rows = first >= end ? 0 : sharing > 0 ? 1 : (end - first + 7) >> 3;
  // Each lane waits for one of them.
  const int row_of_lane = unsigned(lane) / unsigned(max(parts, 1)), part_of_lane = sub + (lane - row_of_lane * parts) * step;
  float2 lse_and_scale = make_float2(-INFINITY, 0.f);
  if (row_of_lane < rows && parts > 0) {
    const int row = first + row_of_lane * 8;
    if (part_of_lane == mine) {
      lse_and_scale = reinterpret_cast<const float2*>(sh.p1)[row];
    } else {
      float2* lse = lse_in_memory(p, tile.slot(part_of_lane), row);
      do {
        lse_and_scale = load_acquired(lse);
      } while (__float_as_uint(lse_and_scale.x) == kNothing);
      const float nothing = __uint_as_float(kNothing);
      __stcg(lse, make_float2(nothing, nothing));
    }
  }
  __syncwarp();
  RowSum sum;
  const int64_t between = int64_t(2 * kSlotWords) * tile.step * step;
#pragma unroll 1
  for (int k = 0; k < rows; ++k) {
    const int row = first + k * 8;
    sum.most = row_of_lane == k ? lse_and_scale.x : -INFINITY;
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) sum.most = fmaxf(sum.most, __shfl_xor_sync(kAll, sum.most, d));
    const float weight = row_of_lane == k ? exp2_approx(lse_and_scale.x - base_of(sum.most)) : 0.f;
    const float scaled = weight * lse_and_scale.y;
    sum.total = weight;
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) sum.total += __shfl_xor_sync(kAll, sum.total, d);
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) sum.v[i] = 0.f;
#pragma unroll 1
    for (int base = 0; base < parts; base += kBatch) {
      uint4 word[kBatch][2];
      const uint4* at = row_in_memory(p, partial_slot(tile.worker(sub + base * step), false), row, lane);
#pragma unroll
      for (int u = 0; u < kBatch; ++u, at += between) {
        const int part = sub + (base + u) * step;
        const bool here = part == mine || base + u >= parts;
        const uint4* from = part == 0 ? at + kSlotWords : at;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          word[u][half] = here ? ptx::load_shared16(staged_row(staged, row, lane) + half * kStagedHalf) : load_word(from + half * 32);
        }
      }
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        const float factor = __shfl_sync(kAll, scaled, k * parts + base + u);
        if (base + u < parts) sum.add(factor, word[u]);
      }
    }
    if (sharing == 0) write_row(p, out_row + row, lane, sum);
  }
  if (sharing == 0) return;
  WarpSums& sums = *reinterpret_cast<WarpSums*>(staging);
  ptx::bar_sync(kBothConsumers, kConsumerThreads);  // nothing staged is read any more
  if (sub > 0) {
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) sums.v[warp][i][lane] = sum.v[i];
    sums.most[warp] = sum.most;
    sums.total[warp] = sum.total;
  }
  ptx::bar_sync(kBothConsumers, kConsumerThreads);
  if (sub > 0 || rows == 0) return;
#pragma unroll 1
  for (int other = warp + 1; other < warp + step; ++other) {
    const float most = fmaxf(sum.most, sums.most[other]), base = base_of(most);
    const float ours = exp2_approx(sum.most - base), theirs = exp2_approx(sums.most[other] - base);
    sum.most = most;
    sum.total = sum.total * ours + sums.total[other] * theirs;
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) sum.v[i] = sum.v[i] * ours + sums.v[other][i][lane] * theirs;
  }
  write_row(p, out_row + first, lane, sum);
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
  const auto begin_of = [&](int part) { return ceil_div(rows * part, tile.owners); };
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
    while (++owner < tile.owners && (sh.orphans[owner >> 5] >> (owner & 31) & 1) == 0) {
    }
    ptx::bar_sync(kBothConsumers, kConsumerThreads);  // sums of warps are read
  }
  ptx::bar_sync(kBothConsumers, kConsumerThreads);
}

}  // namespace flashmla::decode
