// Split-KV MLA decode for Hopper: persistent blocks, two consumer warpgroups and one that loads.
//
// 1. The clerk, a warp, finds this block's place on the line of work from the lengths (common/schedule.h), notes its segments and loads
//    their queries; the producer streams their KV (producer.h), the consumers work on them (consumer.h).
// 2. After a segment its rows are written (output.h): a tile that no other worker shares to the output. Parts of a tile are merged by
//    the blocks that made them, in pairs where a tile has few of them (merge.h), rows each where it has many (share.h); or they go to the
//    partial buffers for mla_combine.
#pragma once
#include <type_traits>

#include "consumer.h"
#include "merge.h"
#include "output.h"
#include "producer.h"
#include "share.h"

namespace flashmla::decode {

// Who merges a tile's parts: mla_combine, its blocks in pairs, or its blocks rows each.
enum class Parts { kCombined, kMerged, kShared };

// kPaced: KV blocks are asked for at the pace of memory.
template <typename T, bool kGather, Parts kParts, bool kPaced>
__device__ __forceinline__ void decode(const MlaDecodeParams& p, const CUtensorMap* map_q, const CUtensorMap* map_kv,
                                       const CUtensorMap* map_tile, uint8_t* raw) {
  using namespace ptx;
  constexpr bool kMerges = kParts != Parts::kCombined, kShares = kParts == Parts::kShared;
  constexpr bool kTurns = kParts == Parts::kMerged && kPaced;
  using Storage = std::conditional_t<kShares, ShareStorage, std::conditional_t<kTurns, TurnsStorage, SharedStorage>>;
  Storage& sh = *reinterpret_cast<Storage*>(raw + ((1024 - (smem_address(raw) & 1023)) & 1023));
  if (threadIdx.x == 0) {
    trace(kTraceStartNs);
    trace(kTraceStart);
  }
  // What is launched to overlap may start: it takes nothing from this kernel, whose blocks leave no room beside them.
  if constexpr (kMerges) asm volatile("griddepcontrol.launch_dependents;");
  const int warp = __shfl_sync(0xffffffffu, int(threadIdx.x) >> 5, 0), lane = threadIdx.x & 31;
  constexpr bool kGuesses = !kGather;
  const bool clerk = warp == (kGather ? 8 : 9);
  const Worker worker(p);
  if (threadIdx.x >= kConsumerThreads) {
    if (clerk) find_place<kGuesses, kMerges>(p, sh, map_q, worker);
    bar_sync(kPlaced, kPlacedThreads<Storage>);
    // The clerk has seen the end of what comes before the kernel: from here on what that wrote is used, and may be overwritten.
    if (!kGather && clerk && lane == 0) announce<kMerges>(p, sh, map_q, worker, 0);
    if constexpr (kShares) {
      if (clerk && lane == 0) __stcg(started(p, worker.index), 1u);
    }
    __syncwarp();
    drop_registers<kProducerRegisters>();
    const bool hands = kParts == Parts::kMerged && warp == 10 && hands_over(sh);
    bar_arrive(kNoted, kThreads);
    if constexpr (kGather) {
      produce_gather(p, map_q, sh);
    } else {
      // Branches of whole warps: of what else there is the compiler keeps too much for so few registers.
      if (warp == 8) {
        const Loaded last = produce_tma<kPaced>(p, map_kv, map_tile, sh);
        if constexpr (kParts == Parts::kMerged) load_parts(p, sh, last);
      }
      if (hands) show_part(p, worker.index);
      if (warp == 9) {
        const int last = announce_rest<kMerges>(p, sh, map_q, worker);
        if constexpr (kShares) settle(p, sh, worker.index, last);
      }
    }
    return;
  }
  if (warp == 1) {
    if constexpr (kShares) init_share(sh, lane);
    init_barriers<kGather>(static_cast<SharedStorage&>(sh), lane);
    bar_arrive(kPlaced, kPlacedThreads<Storage>);
  } else if (threadIdx.x == 64) {
    prefetch_map(map_q);
    prefetch_map(map_kv);
    prefetch_map(map_tile);
  }
  if (kGuesses && lengths_known(p)) {
    bar_sync(kGuessed, kGuessedThreads<Storage>);
    if constexpr (kTurns) {
      prefetch_paced(p, sh, worker.member);
    } else {
      prefetch_guessed<kParts != Parts::kMerged>(p, sh);
    }
  }
  bar_sync(kNoted, kThreads);  // waiting at the note's own barrier, or for registers, would take the clerk's time
  raise_registers<kConsumerRegisters>();
  const int wg = __shfl_sync(0xffffffffu, int(threadIdx.x) >> 7, 0);
  Consumer<T> consumer(p, sh, wg);
  for (bool more = true; more; ++consumer.segment) {
    const Note& note = consumer.next_note();
    const Segment seg = uniform(note.seg);
    more = uniform(note.more) != 0;
    if (uniform(note.any) == 0) break;
    if (threadIdx.x == 0) trace_segment(consumer.segment, kTraceFound);
    const int first_row = (seg.group * p.tiles_per_group + worker.member) * kRows;
    if (seg.shape.blocks == 0) {
      consumer.wait_queries();
      consumer.release(sh.q_empty);
      if (!kMerges && !more) asm volatile("griddepcontrol.launch_dependents;");
      write_empty(p, seg, wg, first_row);
      continue;
    }
    const int row0 = first_row + ((threadIdx.x >> 5) & 3) * 16 + (lane >> 2);
    const int before = seg.shape.seq_len - seg.shape.s_q + 1;
    Rows rows;
    rows.limit[0] = before + int(unsigned(row0) / unsigned(p.h_q));
    rows.limit[1] = before + int(unsigned(row0 + 8) / unsigned(p.h_q));
    // Rows of the tile that are past the last query are masked like it.
    rows.limit[0] = min(rows.limit[0], seg.shape.seq_len);
    rows.limit[1] = min(rows.limit[1], seg.shape.seq_len);
    rows.least = min(before + int(unsigned(first_row) / unsigned(p.h_q)), seg.shape.seq_len);
    float o[128], m[2], l[2];
    consumer.run(seg, rows, o, m, l);
    // Launched earlier, the combine kernel's blocks would crowd on the processors that are done first.
    if (!kMerges && !more) asm volatile("griddepcontrol.launch_dependents;");
    if (threadIdx.x == 0) trace_segment(consumer.segment, kTraceProducts);
    bool whole = seg.whole();
    int last_block = seg.hi - seg.lo - 1;  // of the segment, in the buffers' turn
    if constexpr (kShares) {
      if (!whole) {
        const PartPlace& found = sh.places[consumer.segment & 3];
        const TileParts tile(p, {uniform(found.index), uniform(found.parts)}, uniform(sh.at.overhead), worker.index);
        merge_shared(p, sh, seg, tile, first_row, sh.kv[(seg.hi - seg.lo - 1) & 1][0], o, m, l);
        fence_proxy_async();
        consumer.release_last(seg);
        if (threadIdx.x == 0) trace_segment(consumer.segment, kTraceWritten);
        continue;
      }
    }
    if (kParts == Parts::kMerged && !whole) {
      const PartPlace& found = sh.places[consumer.segment & 3], place = {uniform(found.index), uniform(found.parts)};
      const bool live = first_row + (warp & 3) * 16 < seg.shape.s_q * p.h_q;
      int step = next_taken(place, 0);
      whole = place.index == 0;
      if (step != 0 || !whole) consumer.release_last(seg);
#pragma unroll 1
      for (; step != 0; step = next_taken(place, step), ++last_block) {
        if (step > 1) consumer.release_part(last_block & 1);
        const int nth = last_block - (seg.hi - seg.lo - 1);
        const uint32_t part = consumer.next_part((last_block + 1) & 1);
        if (threadIdx.x == 0) trace_part(nth, 0);
        take_in(part, live, o, m, l);
        if (threadIdx.x == 0) trace_part(nth, 1);
        discard_part(p, worker.index + step * p.tiles_per_group);
      }
      if (!whole) hand_over(p, worker.index, live, o, m, l);
    }
    if (whole || !kMerges) {
      if (write_segment(p, sh, seg, whole, wg, worker.index, first_row, consumer.half(last_block & 1), o, m, l)) fence_proxy_async();
      consumer.release_half(last_block & 1);
    }
    if (threadIdx.x == 0) trace_segment(consumer.segment, kTraceWritten);
  }
  if (threadIdx.x == 0) {
    trace(kTraceEnd);
    trace(kTraceEndNs);
  }
}

}  // namespace flashmla::decode
