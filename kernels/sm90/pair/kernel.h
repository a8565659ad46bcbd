// Split-KV MLA decode for Hopper by pairs of blocks, for more than 64 query rows: persistent clusters of two, each block with two
// consumer warpgroups and a producer warp.
//
// 1. The producer finds the pair's place on the line of work from the lengths (common/schedule.h) and streams Q and KV (producer.h).
// 2. The consumers work on them, in both blocks in step (consumer.h).
// 3. After a segment they merge split tiles (merge.h) and write rows (store_rows of decode/output.h).
#pragma once
#include "../decode/output.h"
#include "../merge.h"
#include "consumer.h"
#include "output.h"
#include "producer.h"

namespace flashmla::pair {

__device__ __forceinline__ void write_rows(const MlaDecodeParams& p, const volatile Note& note, int rank, int wg, const float (&o)[128],
                                           const float (&m)[2], const float (&l)[2]) {
  const int warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31, rows = note.s_q * p.h_q;
  bool live[2];
  float factor[2];
  int64_t row_of[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = note.first_row + wg * 64 + warp * 16 + r * 8 + (lane >> 2);
    live[r] = row < rows;
    row_of[r] = int64_t(note.out_row) + row;
    factor[r] = l[r] > 0.f ? __fdividef(1.f, l[r]) : 0.f;
    if (live[r] && rank == 0 && (lane & 3) == 0) p.lse[row_of[r]] = l[r] > 0.f ? (m[r] + __log2f(l[r])) * kLn2 : -INFINITY;
  }
  if (!__any_sync(0xffffffffu, live[0])) return;  // rows of a warp are live from the first on
  if (p.out_dtype == FLASHMLA_F32) {
    float* out = static_cast<float*>(p.out) + rank * 256;
    float* base[2] = {out + row_of[0] * kValueWidth, out + row_of[1] * kValueWidth};
    decode::store_rows(base, live, factor, o, lane);
  } else {
    uint16_t* out = static_cast<uint16_t*>(p.out) + rank * 256;
    uint16_t* base[2] = {out + row_of[0] * kValueWidth, out + row_of[1] * kValueWidth};
    store_rows(base, live, factor, p.out_dtype == FLASHMLA_BF16, o, lane);
  }
}

template <typename T>
__device__ __forceinline__ void decode_pair(const MlaDecodeParams& p, const CUtensorMap* map_q, const CUtensorMap* map_q_tile,
                                            const CUtensorMap* map_kv, const CUtensorMap* map_kv_tile, uint8_t* raw) {
  using namespace ptx;
  SharedStorage& sh = *reinterpret_cast<SharedStorage*>(raw + ((1024 - (smem_address(raw) & 1023)) & 1023));
  const int rank = cluster_rank();
  // Higher workers in lower blocks: see merge.h.
  const int worker = int(gridDim.x >> 1) - 1 - int(blockIdx.x >> 1), group_worker = unsigned(worker) / unsigned(p.tiles_per_group);
  const int member = worker - group_worker * p.tiles_per_group;
  const Shapes shapes(p, kRows);
  if (threadIdx.x == 0) {
    trace(kTraceStartNs);
    trace(kTraceStart);
  }
  if (threadIdx.x == 32) {
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(smem_address(&sh.full[i]), 1);
      mbarrier_init(smem_address(&sh.empty[i]), kWarps);
    }
    mbarrier_init(smem_address(&sh.q_full), 1);
    mbarrier_init(smem_address(&sh.q_empty), kWarps);
    for (int i = 0; i < kWarps; ++i) {
      mbarrier_init(smem_address(&sh.scores_full[i]), 1);
      mbarrier_init(smem_address(&sh.p_full[i]), 1);
      mbarrier_init(smem_address(&sh.ends_full[i]), 1);
    }
    fence_barrier_init();
  } else if (threadIdx.x == 64) {
    prefetch_map(map_q);
    prefetch_map(map_q_tile);
    prefetch_map(map_kv);
    prefetch_map(map_kv_tile);
  }
  __syncwarp();
  cluster_arrive();
  cluster_wait();

  if (threadIdx.x >= 256) {
    if (threadIdx.x < 288) {
      // What comes before has ended. Nothing of it is read or overwritten earlier.
      asm volatile("griddepcontrol.wait;" ::: "memory");
      const LinePosition at = locate(p, shapes, group_worker);
      drop_registers<kProducerRegisters>();
      produce(p, map_q, map_q_tile, map_kv, map_kv_tile, sh, at, shapes, group_worker, member, rank);
    } else {
      drop_registers<kProducerRegisters>();
    }
  } else {
    raise_registers<kConsumerRegisters>();
    const int wg = __shfl_sync(0xffffffffu, int(threadIdx.x) >> 7, 0);
    Consumer<T> consumer(p, sh, rank, wg);
    uint32_t q_parity = 0;
    int segment = 0;
    for (;;) {
      mbarrier_wait(smem_address(&sh.q_full), q_parity);
      q_parity ^= 1;
      const volatile Note& note = sh.note[segment & 1];
      if (note.parts < 0) break;
      if (threadIdx.x == 0) {
        trace_segment(segment, kTraceFound);
        trace_segment(segment, kTraceQueries);
      }
      float o[128], m[2], l[2];
      if (note.blocks == 0) {
        consumer.release(sh.q_empty);
#pragma unroll
        for (int i = 0; i < 128; ++i) o[i] = 0.f;
        m[0] = m[1] = -INFINITY;
        l[0] = l[1] = 0.f;
      } else {
        consumer.run(note, o, m, l);
      }
      if (!note.more) asm volatile("griddepcontrol.launch_dependents;");
      if (threadIdx.x == 0) trace_segment(segment, kTraceProducts);
      const int step_blocks = 2 * p.tiles_per_group;
#pragma unroll 1
      for (int step = 1; (note.index & (2 * step - 1)) == 0 && note.index + step < note.parts; step *= 2) {
        take_in(p, worker * 2 + rank + step * step_blocks, kBothConsumers, true, o, m, l);
      }
      if (note.index > 0) {
        hand_over(p, worker * 2 + rank, kBothConsumers, true, o, m, l);
      } else {
        write_rows(p, note, rank, wg, o, m, l);
      }
      if (threadIdx.x == 0) trace_segment(segment, kTraceWritten);
      ++segment;
      if (!note.more) break;
    }
    if (threadIdx.x == 0) {
      trace(kTraceEnd);
      trace(kTraceEndNs);
    }
  }
  // Nothing may be on its way to a block that has ended.
  __syncwarp();
  cluster_arrive();
  cluster_wait();
}

}  // namespace flashmla::pair
