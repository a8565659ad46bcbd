// Split-KV MLA decode for Hopper: persistent blocks, two consumer warpgroups and a producer.
//
// 1. One warp finds this block's place on the line of work from the lengths (common/schedule.h); barriers are set up meanwhile.
// 2. The producer streams Q and KV of the block's segments (producer.h); the consumers work on them (consumer.h).
// 3. After a segment the warpgroups add their shares of the row sums. A tile that no other worker shares is normalized and
//    written; else its normalized part and its log-sum-exp go to the partial buffers, which mla_combine merges.
#pragma once
#include "consumer.h"
#include "producer.h"

namespace flashmla::decode {

template <typename T>
__device__ __forceinline__ void write_segment(const MlaDecodeParams& p, SharedStorage& sh, const Segment& seg, int wg, int64_t worker,
                                              int first_row, float (&o)[128], const float (&m)[2], float (&l)[2]) {
  const int warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31;
  // Exchange of the row sums through the arrays of factors, which are idle between segments.
  float* mine = wg == 0 ? sh.s0 : sh.s1;
  const float* other = wg == 0 ? sh.s1 : sh.s0;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    l[r] += __shfl_xor_sync(0xffffffffu, l[r], 1);
    l[r] += __shfl_xor_sync(0xffffffffu, l[r], 2);
  }
  ptx::bar_sync(kBothConsumers, 256);  // nobody still reads a factor
  if ((lane & 3) == 0) {
    mine[warp * 16 + (lane >> 2)] = l[0];
    mine[warp * 16 + 8 + (lane >> 2)] = l[1];
  }
  ptx::bar_sync(kBothConsumers, 256);
  const bool whole = seg.whole();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int tile_row = warp * 16 + r * 8 + (lane >> 2);
    const float sum = l[r] + other[tile_row];
    const float inv = sum > 0.f ? 1.f / sum : 0.f;
    const float lse2 = sum > 0.f ? m[r] + log2f(sum) : -INFINITY;
    const int row = first_row + tile_row;
    if (row < seg.shape.s_q * p.h_q) {
      const int column = wg * 256 + (lane & 3) * 2;
      if (whole) {
        const int64_t out_row = int64_t(seg.shape.query_start) * p.h_q + row;
        const int64_t base = out_row * kValueWidth + column;
        if (p.out_dtype == FLASHMLA_F32) {
#pragma unroll
          for (int j = 0; j < 64 / 2; ++j) {
            *reinterpret_cast<float2*>(static_cast<float*>(p.out) + base + j * 8) =
                make_float2(o[j * 4 + r * 2] * inv, o[j * 4 + r * 2 + 1] * inv);
          }
        } else {
          const bool bf16 = p.out_dtype == FLASHMLA_BF16;
#pragma unroll
          for (int j = 0; j < 32; ++j) {
            const float lo = o[j * 4 + r * 2] * inv, hi = o[j * 4 + r * 2 + 1] * inv;
            *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(p.out) + base + j * 8) = bf16 ? Bf16::pack(lo, hi) : F16::pack(lo, hi);
          }
        }
        if (wg == 0 && (lane & 3) == 0) p.lse[out_row] = lse2 * kLn2;
      } else {
        const int64_t slot_row = partial_slot(worker, seg.lo == 0) * kRows + tile_row;
        float* base = p.partial_out + slot_row * kValueWidth + column;
#pragma unroll
        for (int j = 0; j < 32; ++j) {
          *reinterpret_cast<float2*>(base + j * 8) = make_float2(o[j * 4 + r * 2] * inv, o[j * 4 + r * 2 + 1] * inv);
        }
        if (wg == 0 && (lane & 3) == 0) p.partial_lse[slot_row] = lse2;
      }
    }
  }
}

template <typename T, bool kGather>
__device__ __forceinline__ void decode(const MlaDecodeParams& p, const CUtensorMap* map_q, const CUtensorMap* map_kv,
                                       const CUtensorMap* map_tile, uint8_t* raw) {
  using namespace ptx;
  SharedStorage& sh = *reinterpret_cast<SharedStorage*>(raw + ((1024 - (smem_address(raw) & 1023)) & 1023));
  const int64_t worker = blockIdx.x;
  const int64_t group_worker = worker / p.tiles_per_group;
  const int member = int(worker % p.tiles_per_group);

  if (threadIdx.x < 32) {
    // What comes before has ended, for all of the block: it meets below. Nothing of it is read or overwritten earlier.
    asm volatile("griddepcontrol.wait;" ::: "memory");
    const LinePosition at = locate(p, kRows, group_worker, 0);
    if (threadIdx.x == 0) {
      sh.at[0] = at.chunk;
      sh.at[1] = at.total;
      sh.at[2] = at.seq_start;
      sh.at[3] = at.seq;
    }
  } else if (threadIdx.x == 32) {
    for (int b = 0; b < 2; ++b) {
      for (int u = 0; u < kUnits; ++u) mbarrier_init(smem_address(&sh.full[b][u]), kGather ? 128 : 1);
      for (int r = 0; r < kRegions; ++r) mbarrier_init(smem_address(&sh.empty[b][r]), 4);
    }
    mbarrier_init(smem_address(&sh.q_full), 1);
    mbarrier_init(smem_address(&sh.q_empty), 8);
    fence_barrier_init();
    prefetch_map(map_q);
    prefetch_map(map_kv);
    prefetch_map(map_tile);
  }
  __syncthreads();
  const LinePosition at{sh.at[0], sh.at[1], sh.at[2], int(sh.at[3])};

  if (threadIdx.x >= 256) {
    drop_registers<kProducerRegisters>();
    if constexpr (kGather) {
      produce_gather(p, map_q, sh, at, group_worker, member);
    } else if (threadIdx.x < 288) {
      produce_tma(p, map_q, map_kv, map_tile, sh, at, group_worker, member);
    }
  } else {
    raise_registers<kConsumerRegisters>();
    const int wg = __shfl_sync(0xffffffffu, int(threadIdx.x) >> 7, 0);
    Consumer<T> consumer(p, sh, wg);
    SegmentWalk walk(at, group_worker);
    Segment seg;
    const bool describes = threadIdx.x == 0 && member == 0;
    if (describes && !p.split_by_tile) p.splits[group_worker].splits = 0;
    while (walk.next(p, kRows, seg)) {
      if (describes && seg.lo == 0 && (p.split_by_tile || !seg.whole())) {
        p.splits[split_index(p, seg, group_worker)] = describe_split(p, seg, group_worker, at.chunk);
      }
      const int tile = seg.group * p.tiles_per_group + member;
      const int rows_total = seg.shape.s_q * p.h_q;
      if (tile * kRows >= rows_total) continue;
      const int first_row = tile * kRows;
      float o[128], m[2], l[2];
      if (seg.shape.blocks == 0) {
#pragma unroll
        for (int i = 0; i < 128; ++i) o[i] = 0.f;
        m[0] = m[1] = -INFINITY;
        l[0] = l[1] = 0.f;
      } else {
        const int lane = threadIdx.x & 31, row0 = first_row + ((threadIdx.x >> 5) & 3) * 16 + (lane >> 2);
        const int before = seg.shape.seq_len - seg.shape.s_q + 1;
        Rows rows;
        rows.limit[0] = before + row0 / p.h_q;
        rows.limit[1] = before + (row0 + 8) / p.h_q;
        // Rows of the tile that are past the last query are masked like it.
        rows.limit[0] = min(rows.limit[0], seg.shape.seq_len);
        rows.limit[1] = min(rows.limit[1], seg.shape.seq_len);
        rows.least = min(before + first_row / p.h_q, seg.shape.seq_len);
        consumer.run(seg, rows, o, m, l);
      }
      // Launched earlier, the combine kernel's blocks would crowd on the processors that are done first.
      if (walk.pos >= walk.end) asm volatile("griddepcontrol.launch_dependents;");
      write_segment<T>(p, sh, seg, wg, worker, first_row, o, m, l);
    }
  }
}

}  // namespace flashmla::decode
