// Split-KV MLA decode for Hopper: persistent blocks, two consumer warpgroups and a producer.
//
// 1. One warp finds this block's place on the line of work from the lengths (common/schedule.h); barriers are set up meanwhile.
// 2. The producer streams Q and KV of the block's segments (producer.h); the consumers work on them (consumer.h).
// 3. After a segment its rows are written (output.h): a tile that no other worker shares to the output, a part of one to the partial
//    buffers, which mla_combine merges.
#pragma once
#include "consumer.h"
#include "output.h"
#include "producer.h"

namespace flashmla::decode {

template <typename T, bool kGather>
__device__ __forceinline__ void decode(const MlaDecodeParams& p, const CUtensorMap* map_q, const CUtensorMap* map_kv,
                                       const CUtensorMap* map_tile, uint8_t* raw) {
  using namespace ptx;
  SharedStorage& sh = *reinterpret_cast<SharedStorage*>(raw + ((1024 - (smem_address(raw) & 1023)) & 1023));
  const int worker = blockIdx.x, group_worker = unsigned(worker) / unsigned(p.tiles_per_group);
  const int member = worker - group_worker * p.tiles_per_group;
  const Shapes shapes(p, kRows);
  if (threadIdx.x == 0) {
    trace(kTraceStartNs);
    trace(kTraceStart);
  }

  if (threadIdx.x < 32) {
    // What comes before has ended, for all of the block: it meets below. Nothing of it is read or overwritten earlier.
    asm volatile("griddepcontrol.wait;" ::: "memory");
    if (threadIdx.x == 0) trace(kTracePrecedent);
    const LinePosition at = locate(p, shapes, group_worker);
    if (threadIdx.x == 0) sh.at = at;
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
  const LinePosition at = sh.at;
  if (threadIdx.x == 0) trace(kTraceLocated);

  if (threadIdx.x >= 256) {
    drop_registers<kProducerRegisters>();
    if constexpr (kGather) {
      produce_gather(p, map_q, sh, at, shapes, group_worker, member);
    } else if (threadIdx.x < 288) {
      produce_tma(p, map_q, map_kv, map_tile, sh, at, shapes, group_worker, member);
    }
  } else {
    raise_registers<kConsumerRegisters>();
    const int wg = __shfl_sync(0xffffffffu, int(threadIdx.x) >> 7, 0);
    Consumer<T> consumer(p, sh, wg);
    SegmentWalk walk(at, group_worker);
    Segment seg;
    const bool describes = threadIdx.x == 0 && member == 0;
    if (describes && !p.split_by_tile) p.splits[group_worker].splits = 0;
    while (walk.next(at, shapes, seg)) {
      if (threadIdx.x == 0) trace_segment(consumer.segment, kTraceFound);
      if (describes && seg.lo == 0 && (p.split_by_tile || !seg.whole())) {
        p.splits[split_index(p, shapes, seg, group_worker)] = describe_split(p, at, seg, group_worker);
      }
      const int first_row = (seg.group * p.tiles_per_group + member) * kRows;
      if (first_row >= seg.shape.s_q * p.h_q) continue;
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
        rows.limit[0] = before + int(unsigned(row0) / unsigned(p.h_q));
        rows.limit[1] = before + int(unsigned(row0 + 8) / unsigned(p.h_q));
        // Rows of the tile that are past the last query are masked like it.
        rows.limit[0] = min(rows.limit[0], seg.shape.seq_len);
        rows.limit[1] = min(rows.limit[1], seg.shape.seq_len);
        rows.least = min(before + int(unsigned(first_row) / unsigned(p.h_q)), seg.shape.seq_len);
        consumer.run(seg, rows, o, m, l);
      }
      // Launched earlier, the combine kernel's blocks would crowd on the processors that are done first.
      if (walk.pos >= walk.end) asm volatile("griddepcontrol.launch_dependents;");
      if (threadIdx.x == 0) trace_segment(consumer.segment, kTraceProducts);
      write_segment(p, sh, seg, wg, worker, first_row, o, m, l);
      if (threadIdx.x == 0) trace_segment(consumer.segment, kTraceWritten);
      ++consumer.segment;
    }
    if (threadIdx.x == 0) {
      trace(kTraceEnd);
      trace(kTraceEndNs);
    }
  }
}

}  // namespace flashmla::decode
