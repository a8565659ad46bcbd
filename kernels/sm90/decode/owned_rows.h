// The rows of a split tile that a block merges, in share.h.
//
// 1. A warp takes the parts of a row, or several warps do where rows are few. It copies each part's row to shared memory once that is there, while others are
//    still on their way.
// 2. Parts are added in their order, so results do not depend on timing. Warps that share a row add up what they have through shared memory.
#pragma once
#include "../../common/discard.h"
#include "output.h"
#include "warp_share.h"

namespace flashmla::decode {

constexpr int kLaneValues = 16;  // of a row: columns 8 lane + 0 .. 7 of both halves

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

// Room for what a warp takes of other blocks' parts, where queries and KV were.
constexpr int kRowBytes = kValueWidth * 2, kTakenBytes = kMostTaken * kRowBytes;
static_assert(4 * kTakenBytes == sizeof(SharedStorage::q) && 4 * kTakenBytes == sizeof(SharedStorage::kv) / 2);

// Two floats as one access: what is read is whole.
__device__ __forceinline__ float2 load_acquired(const float2* pair) {
  float2 v;
  asm volatile("{\n.reg .b64 both;\nld.acquire.gpu.global.b64 both, [%2];\nmov.b64 {%0, %1}, both;\n}\n" : "=f"(v.x), "=f"(v.y) : "l"(pair) : "memory");
  return v;
}

// Takes each part's row once it is there, while others are still on their way. Each lane waits for one part of one row, and has that part's log-sum-exp and
// scale of it afterwards; of all that are in shared memory then, each lane has copied the columns that it adds up.
__device__ __forceinline__ float2 take_rows(const MlaDecodeParams& p, const SharedStorage& sh, const TileParts& tile, const WarpShare& share, int mine,
                                            uint32_t taken, int lane) {
  constexpr unsigned kAll = 0xffffffffu;
  const int shift = __ffs(share.lanes) - 1;
  const auto row_of = [&](int of_lane) { return share.first + (of_lane >> shift) * 8; };
  const auto nth_of = [&](int of_lane) { return of_lane & (share.lanes - 1); };
  const auto part_of = [&](int of_lane) { return share.sub + nth_of(of_lane) * share.step; };
  float2 lse_and_scale = make_float2(-INFINITY, 0.f);
  bool waits = lane >> shift < share.rows && nth_of(lane) < share.parts;
  if (waits && part_of(lane) == mine) {
    lse_and_scale = reinterpret_cast<const float2*>(sh.p1)[row_of(lane)];
    waits = false;
  }
  float2* lse = lse_in_memory(p, tile.slot(part_of(lane)), row_of(lane));
#pragma unroll 1
  while (__any_sync(kAll, waits)) {
    bool came = false;
    if (waits) {
      lse_and_scale = load_acquired(lse);
      came = __float_as_uint(lse_and_scale.x) != kNothing;
    }
    if (came) {
      const float nothing = __uint_as_float(kNothing);
      __stcg(lse, make_float2(nothing, nothing));
      waits = false;
    }
    __syncwarp();
#pragma unroll 1
    for (uint32_t here = __ballot_sync(kAll, came); here != 0; here &= here - 1) {
      const int of_lane = __ffs(here) - 1;
      const uint4* from = row_in_memory(p, tile.slot(part_of(of_lane)), row_of(of_lane), lane);
      const uint32_t to = taken + ((of_lane >> shift) * share.parts + nth_of(of_lane)) * kRowBytes + lane * 16;
#pragma unroll
      for (int half = 0; half < 2; ++half) ptx::cp_async16(to + half * (kRowBytes / 2), from + half * 32, 16);
    }
  }
  ptx::cp_async_commit();
  return lse_and_scale;
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

// Adds up the parts of the warp's kth row, in their order. scaled: of the lane's part, its weight by its scale.
__device__ __forceinline__ void add_row(const WarpShare& share, int k, int mine, uint32_t staged, uint32_t taken, float scaled, int lane, RowSum& sum) {
  const int row = share.first + k * 8;
#pragma unroll 2
  for (int nth = 0; nth < share.parts; ++nth) {
    uint32_t from = taken + (k * share.parts + nth) * kRowBytes + lane * 16, between = kRowBytes / 2;
    if (share.sub + nth * share.step == mine) {
      from = staged_row(staged, row, lane);
      between = kStagedHalf;
    }
    const uint4 word[2] = {ptx::load_shared16(from), ptx::load_shared16(from + between)};
    sum.add(__shfl_sync(0xffffffffu, scaled, k * share.lanes + nth), word);
  }
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

// Merges rows [begin, end) of a tile, the last thing that the block does. All consumers. mine: the part that is staged, or none where all are in memory.
__device__ __forceinline__ void merge_rows(const MlaDecodeParams& p, SharedStorage& sh, const TileParts& tile, int mine, uint8_t* staging,
                                           int begin, int end, int64_t out_row, int warp, int lane) {
  constexpr unsigned kAll = 0xffffffffu;
  const uint32_t staged = ptx::smem_address(staging);
  uint8_t* const spare = warp < 4 ? sh.q[0] : staging == sh.kv[0][0] ? sh.kv[1][0] : sh.kv[0][0];
  const uint32_t taken = ptx::smem_address(spare) + (warp & 3) * kTakenBytes;
  const WarpShare share(tile.parts, begin, end, warp);
  const float2 lse_and_scale = take_rows(p, sh, tile, share, mine, taken, lane);
  float most = lse_and_scale.x;
  for (int d = 1; d < share.lanes; d <<= 1) most = fmaxf(most, __shfl_xor_sync(kAll, most, d));
  const float weight = exp2_approx(lse_and_scale.x - base_of(most)), scaled = weight * lse_and_scale.y;
  float total = weight;
  for (int d = 1; d < share.lanes; d <<= 1) total += __shfl_xor_sync(kAll, total, d);
  ptx::cp_async_wait<0>();
  RowSum sum;
#pragma unroll 1
  for (int k = 0; k < share.rows; ++k) {
    sum = RowSum();
    add_row(share, k, mine, staged, taken, scaled, lane, sum);
    sum.most = __shfl_sync(kAll, most, k * share.lanes);
    sum.total = __shfl_sync(kAll, total, k * share.lanes);
    if (share.step == 1) write_row(p, out_row + share.first + k * 8, lane, sum);
  }
  if (share.step > 1) add_warps(p, *reinterpret_cast<WarpSums*>(staging), share, sum, out_row + share.first, warp, lane);
  if (flows_through_l2(sh.at.total)) discard_rows(p, tile, share, mine, lane);
}

}  // namespace flashmla::decode
