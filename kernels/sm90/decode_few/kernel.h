// Split-KV MLA decode for Hopper by tiles of 16 or 32 query rows, for sequences that have so few, or a few such tiles beside each other and few tokens.
// Schedule, loads and the merging of parts are those of ../decode; what differs is the consumers (consumer.h), whose products have the query rows as
// their narrow side. Tiles beside each other leave their parts to the combine kernel (combine.h).
#pragma once
#include "../decode/producer.h"
#include "merge.h"

namespace flashmla::decode_few {

template <typename T, int kTileRows, bool kMerges>
__device__ __forceinline__ void decode(const MlaDecodeParams& p, const CUtensorMap* map_q, const CUtensorMap* map_kv,
                                       const CUtensorMap* map_tile, uint8_t* raw) {
  using namespace ptx;
  using Storage = SharedStorage<kTileRows>;
  constexpr bool kByRows = by_rows(kTileRows);
  Storage& sh = *reinterpret_cast<Storage*>(raw + ((1024 - (smem_address(raw) & 1023)) & 1023));
  if (threadIdx.x == 0) {
    trace(kTraceStartNs);
    trace(kTraceStart);
  }
  // What is launched to overlap may start: blocks of mla_combine_few beside this one, or those of a later decode after it.
  asm volatile("griddepcontrol.launch_dependents;");
  const int warp = __shfl_sync(0xffffffffu, int(threadIdx.x) >> 5, 0), lane = threadIdx.x & 31;
  const decode::Worker worker(p);
  if (warp >= 8) {
    bool asked = false;
    if (warp == 9) asked = decode::find_place<true, kMerges>(p, sh, map_q, worker);
    if (warp == 8 && lengths_known(p)) {
      bar_sync(decode::kGuessed, decode::kGuessedThreads<Storage>);
      decode::ask_ahead(p, map_kv, map_tile, sh);
    } else {
      bar_sync(decode::kPlaced, decode::kPlacedThreads<Storage>);
    }
    // The clerk has seen the end of what comes before the kernel: from here on what that wrote is used, and may be overwritten.
    if (warp == 9 && lane == 0) decode::announce<kMerges>(p, sh, map_q, worker, 0, asked);
    __syncwarp();
    bar_arrive(decode::kNoted, kThreads);
    if (warp == 8) decode::produce_tma<true>(p, map_kv, map_tile, sh);
    if (warp == 9) decode::announce_rest<kMerges>(p, sh, map_q, worker);
    return;
  }
  if (warp == 1) {
    if (lane == 0) sh.ahead = 0;
    decode::init_barriers<false>(sh, lane);
    bar_arrive(decode::kPlaced, decode::kPlacedThreads<Storage>);
  } else if (threadIdx.x == 64) {
    prefetch_map(map_q);
    prefetch_map(map_kv);
    prefetch_map(map_tile);
  }
  if (lengths_known(p)) {
    bar_sync(decode::kGuessed, decode::kGuessedThreads<Storage>);
    decode::prefetch_paced(p, sh, worker.member);
  }
  bar_sync(decode::kNoted, kThreads);  // waiting at the note's own barrier would take the clerk's time
  const int wg = __shfl_sync(0xffffffffu, int(threadIdx.x) >> 7, 0), first_row = worker.member * kTileRows;
  Consumer<T, kTileRows> consumer(p, sh, wg);
  for (bool more = true; more; ++consumer.segment) {
    const decode::Note& note = consumer.next_note();
    const Segment seg = decode::uniform(note.seg);
    more = decode::uniform(note.more) != 0;
    if (decode::uniform(note.any) == 0) break;
    if (threadIdx.x == 0) trace_segment(consumer.segment, kTraceFound);
    if (seg.shape.blocks == 0) {
      consumer.wait_queries();
      consumer.release(sh.q_empty);
      decode::write_empty(p, seg, wg, first_row);
      continue;
    }
    Rows rows;
    rows.least = seg.shape.seq_len - seg.shape.s_q + 1;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int row = first_row + (kByRows ? wg * kRows : 0) + row_of_column(c, lane);
      rows.live[c] = row < seg.shape.s_q * p.h_q;
      rows.limit[c] = min(rows.least + int(unsigned(row) / unsigned(p.h_q)), seg.shape.seq_len);
    }
    Sums<kTileRows> sums;
    {
      float o[8][8], m[kColumns], l[kColumns];
      consumer.run(seg, rows, o, m, l);
      if (threadIdx.x == 0) trace_segment(consumer.segment, kTraceProducts);
      add_up(sh, wg, o, m, l, sums);
    }
    bool whole = seg.whole();
    PartPlace place = {};
    if (kMerges && !whole) {
      const PartPlace& found = sh.places[consumer.segment & 3];
      place = {decode::uniform(found.index), decode::uniform(found.parts)};
      whole = place.index == 0;
#pragma unroll 1
      for (int step = 1; takes_in(place, step); step *= 2) {
        take_in(p, worker.index + step, sums);
      }
      if (!whole) hand_over(p, worker.index, sums);
    }
    if (whole) {
      write_rows(p, sh, seg, wg, first_row, sums);
    } else if (!kMerges) {
      write_part(p, partial_slot(worker.group, seg.lo == 0) * p.tiles_per_group + worker.member, seg.shape.s_q * p.h_q - first_row, sums);
    }
    if constexpr (kMerges) {
      __syncwarp();
#pragma unroll 1
      for (int step = 1; takes_in(place, step); step *= 2) discard_part<kTileRows>(p, worker.index + step);
    }
    if (threadIdx.x == 0) trace_segment(consumer.segment, kTraceWritten);
  }
  if (threadIdx.x == 0) {
    trace(kTraceEnd);
    trace(kTraceEndNs);
  }
}

}  // namespace flashmla::decode_few
