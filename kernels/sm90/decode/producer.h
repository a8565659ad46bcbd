// The loading warpgroup. The clerk, a warp of it, finds the block's segments, notes them and loads their queries; the producer keeps the
// two KV buffers filled, region by region, as the consumers free them. Pages that tensor maps can't copy take all four warps: the clerk
// is their first then.
//
// 1. A note is written before its queries' place is free, so that the first KV blocks of a segment are on their way by then.
// 2. For each 64-token block: rotary part, then the half that frees first for this buffer, then the other.
// 3. Row tiles of one sequence run as blocks side by side on the same KV, which the second finds in L2.
// One copy brings 64 rows of two tiles: what issuing a copy costs one thread would else be the bound of the whole kernel.
#pragma once
#include "config.h"

namespace flashmla::decode {

// Regions in the order the consumers free them.
__device__ constexpr int region_order(int buffer, int i) { return i == 0 ? kRope : (i == 1) == (buffer == 0) ? kLeft : kRight; }

// Threads of the barrier before which the place is found and barriers are set up: those that load, and the warp that sets up.
template <typename Storage>
constexpr int kPlacedThreads = Storage::kLoadingThreads + 32;

// Of the one after which a guess stands in the first note: the consumers, the clerk, and the producer where it asks for what was guessed.
template <typename Storage>
constexpr int kGuessedThreads = kConsumerThreads + (Storage::kAsksAhead ? 64 : 32);

// A barrier a lane, in the order in which they stand; one warp.
template <bool kGather, typename Storage>
__device__ __forceinline__ void init_barriers(Storage& sh, int lane) {
  constexpr int kFull = 2 * kUnits, kEmpty = 2 * kRegions, kAll = kFull + kEmpty + 4;
  static_assert(offsetof(Storage, empty) == offsetof(Storage, full) + 8 * kFull);
  static_assert(offsetof(Storage, note_full) == offsetof(Storage, empty) + 8 * (kEmpty + 2));
  const int arrivals = lane < kFull ? (kGather ? 128 : 1) : lane < kFull + kEmpty ? Storage::kReleases : lane == kFull + kEmpty + 1 ? 8 : 1;
  if (lane < kAll) ptx::mbarrier_init(ptx::smem_address(&sh.full[0][0] + lane), arrivals);
  ptx::fence_barrier_init();
}

// Which group worker a block belongs to, and which of its members it is. Higher workers are lower blocks: see merge.h.
struct Worker {
  int index, group, member;
  __device__ __forceinline__ explicit Worker(const MlaDecodeParams& p) {
    index = int(gridDim.x) - 1 - int(blockIdx.x);
    group = p.tiles_per_group == 1 ? index : unsigned(index) / unsigned(p.tiles_per_group);
    member = index - group * p.tiles_per_group;
  }
};

// The next segment that has rows for this member of the group, as a note.
template <int kRows, typename AnyShapes>
__device__ __forceinline__ void next_note(const MlaDecodeParams& p, const AnyShapes& shapes, const LinePosition& at, const Worker& worker,
                                          SegmentWalk& walk, Note& note) {
  do {
    note.any = walk.next(at, shapes, note.seg);
  } while (note.any && (note.seg.group * p.tiles_per_group + worker.member) * kRows >= note.seg.shape.s_q * p.h_q);
  note.more = walk.pos < walk.end;
}

__device__ __forceinline__ void wait_for_precedent() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
  if ((threadIdx.x & 31) == 0) trace(kTracePrecedent);
}

// The worker's first segment, from where it starts on the line, and its place among its tile's parts.
template <bool kMerges, typename AnyShapes, typename Storage>
__device__ __forceinline__ void note_first(const MlaDecodeParams& p, Storage& sh, const AnyShapes& shapes, const LinePosition& at,
                                           const Worker& worker) {
  SegmentWalk walk(at, worker.group);
  Note note;
  next_note<Storage::kRows>(p, shapes, at, worker, walk, note);
  if ((threadIdx.x & 31) == 0) {
    sh.at = at;
    sh.walk = walk;
    sh.note[0] = note;
    if constexpr (kMerges) sh.places[0] = place_of(at, note.seg, worker.group);
  }
}

// Where a guessed segment's queries start, and whether there are any.
template <typename Storage>
__device__ __forceinline__ bool queries_of(const MlaDecodeParams& p, const Note& note, const Worker& worker, int& row) {
  row = note.seg.shape.query_start * p.h_q + (note.seg.group * p.tiles_per_group + worker.member) * Storage::kRows;
  return note.any && note.seg.shape.blocks > 0;
}

// Sets barriers up anew whose copies were asked for by a wrong guess, when those have come; one thread.
__device__ __forceinline__ void take_back(uint64_t* bars, int n) {
  for (int i = 0; i < n; ++i) {
    const uint32_t bar = ptx::smem_address(bars + i);
    ptx::mbarrier_wait(bar, 0);
    ptx::mbarrier_invalidate(bar);
    ptx::mbarrier_init(bar, 1);
  }
  ptx::fence_barrier_init();
  ptx::fence_proxy_async();
}

template <typename Storage>
__device__ __forceinline__ void load_queries(Storage& sh, const CUtensorMap* map_q, int row) {
  const uint32_t bar = ptx::smem_address(&sh.q_full);
  ptx::mbarrier_expect_tx(bar, sizeof(sh.q));
  ptx::tma_load_3d(ptx::smem_address(sh.q), map_q, bar, 0, row, 0);
}

// Finds the worker's place on the line and its first segment, by one warp. A launch may overlap the end of what comes before, which may
// still write the lengths: the place is worked out from the lengths as they are, and again if they are others when that has ended.
// Where overlap is likely, most of it is out of the way by then, and the queries are asked for before the lengths are there again: whether
// they are is the result.
template <bool kGuesses, bool kMerges, typename Storage>
__device__ __forceinline__ bool find_place(const MlaDecodeParams& p, Storage& sh, const CUtensorMap* map_q, const Worker& worker) {
  const int lane = threadIdx.x & 31;
  const bool known = lengths_known(p);
  bool found = known, asked = false;
  if (!kGuesses || !known) wait_for_precedent();
  if (known) {
    int seq_lens[kKnownOfLane];
#pragma unroll
    for (int i = 0; i < kKnownOfLane; ++i) {
      const int seq = lane * kKnownOfLane + i;
      seq_lens[i] = seq < p.batch ? __ldcg(p.seq_lens + seq) : 0;
      // Whatever stands there yet: no more than what the arithmetic of the schedule can hold.
      if (kGuesses) seq_lens[i] = min(max(seq_lens[i], 0), 1 << 20);
      sh.seq_lens[seq] = seq_lens[i];
    }
    __syncwarp();
    note_first<kMerges>(p, sh, KnownShapes{p, sh.seq_lens}, locate(p, seq_lens, worker.group), worker);
    if constexpr (kGuesses) {
      sh.precedes = 1;
      int row = 0;
      if constexpr (Storage::kAsksAhead) {
        ptx::bar_sync(kGuessed, kGuessedThreads<Storage>);  // barriers are set up
        asked = queries_of<Storage>(p, sh.note[0], worker, row);
      } else {
        ptx::bar_arrive(kGuessed, kGuessedThreads<Storage>);
      }
      wait_for_precedent();
      sh.precedes = 0;
      if (asked && lane == 0) load_queries(sh, map_q, row);
#pragma unroll
      for (int i = 0; i < kKnownOfLane; ++i) {
        const int seq = lane * kKnownOfLane + i;
        if (seq < p.batch) found &= seq_lens[i] == __ldcg(p.seq_lens + seq);
      }
      found = __all_sync(0xffffffffu, found);
    }
  }
  if (__builtin_expect(!found, 0)) {
    if (asked && lane == 0) take_back(&sh.q_full, 1);
    asked = false;
    const Shapes shapes(p, Storage::kRows);
    note_first<kMerges>(p, sh, shapes, locate(p, shapes, worker.group), worker);
  }
  if (lane == 0) {
    sh.known = found;
    trace(kTraceLocated);
  }
  __syncwarp();
  return asked;
}

// What mla_combine has to know of a segment; one thread.
template <typename Storage>
__device__ __forceinline__ void describe(const MlaDecodeParams& p, const Storage& sh, const Worker& worker, int number) {
  if (worker.member != 0) return;
  const Note& note = sh.note[number & 1];
  if (number == 0 && !p.split_by_tile) p.splits[worker.group].splits = 0;
  if (note.any && note.seg.lo == 0 && (p.split_by_tile || !note.seg.whole())) {
    p.splits[split_index(p, note.seg, worker.group)] = describe_split(p, sh.at, note.seg, worker.group);
  }
}

constexpr int kLines = kWidth * 2 / 128;  // of a row, of what L2 takes at once
__device__ __forceinline__ void prefetch(const char* line) { asm volatile("prefetch.global.L2 [%0];" ::"l"(line) : "memory"); }

// Queries from a row of the segment's on, as many as a tile has, a thread each; the consumers. Of lines asked for faster than memory brings them
// some would be dropped.
template <typename Storage>
__device__ __forceinline__ void prefetch_queries(const MlaDecodeParams& p, const Segment& seg, int first_row) {
  const int thread = threadIdx.x, row = first_row + thread;
  const char* q = static_cast<const char*>(p.q) + (int64_t(seg.shape.query_start) * p.h_q + row) * (kWidth * 2);
  if (thread < Storage::kRows && row < seg.shape.s_q * p.h_q) ptx::bulk_prefetch(q, kWidth * 2);
}

// Where a token of a guessed segment stands in the cache, if it does: a guess may be wrong, and ids be anything, and nothing outside the tensors is
// touched.
__device__ __forceinline__ bool guessed_row(const MlaDecodeParams& p, const Segment& seg, int token, const char*& kv) {
  const int page = unsigned(token) / unsigned(p.page_size);
  if (token >= min(seg.hi * kBlockTokens, seg.shape.seq_len) || page >= p.block_table_stride) return false;
  const int id = __ldcg(p.block_table + seg.seq * p.block_table_stride + page);
  if (id < 0 || id >= p.num_blocks) return false;
  kv = static_cast<const char*>(p.kv) + (id * p.kv_page_stride + (token - page * p.page_size) * p.kv_row_stride) * 2;
  return true;
}

// Fetches the queries and the first two KV blocks of a guessed segment into L2, while what comes before still runs; the consumers. kStops:
// once that has ended, since the copies fetch it all then. Blocks side by side go on: what they have fetched together keeps them together.
template <bool kStops, typename Storage>
__device__ __forceinline__ void prefetch_guessed(const MlaDecodeParams& p, const Storage& sh) {
  const Note& note = sh.note[0];
  const Segment& seg = note.seg;
  const volatile int& precedes = sh.precedes;
  if (!precedes || !note.any || seg.shape.blocks == 0) return;
  const int thread = threadIdx.x, member = Worker(p).member;
  prefetch_queries<Storage>(p, seg, (seg.group * p.tiles_per_group + member) * Storage::kRows);
  // Two threads a token; of blocks side by side the first two take a KV block each.
  const int token = seg.lo * kBlockTokens + (thread >> 1), block = thread >> 7;
  if (p.tiles_per_group > 1 && block != member) return;
  const char* kv;
  if (!guessed_row(p, seg, token, kv)) return;
  for (int line = thread & 1; line < kLines && (!kStops || precedes); line += 2) prefetch(kv + line * 128);
}

__device__ __forceinline__ uint32_t now_ns() {
  uint32_t ns;
  asm volatile("mov.u32 %0, %globaltimer_lo;" : "=r"(ns)::"memory");
  return ns;
}

// What prefetch_guessed does, for kernels whose blocks start early, at little more than the worker's share of memory's rate: what waits in its queues is in
// the way of the lengths, instructions and parts that others wait for, and what it is asked for beyond is dropped. So more KV blocks can be fetched; blocks
// side by side take turns. It may go on for a while when what comes before has ended; the first KV block is asked for then, and not fetched any more.
template <typename Storage>
__device__ __forceinline__ void prefetch_paced(const MlaDecodeParams& p, const Storage& sh, int member) {
  const Note& note = sh.note[0];
  const Segment& seg = note.seg;
  const volatile int& precedes = sh.precedes;
  if (!precedes || !note.any || seg.shape.blocks == 0) return;
  const int thread = threadIdx.x;
  prefetch_queries<Storage>(p, seg, member * Storage::kRows);
  const uint32_t pace = unsigned(p.block_ps * p.workers) / Storage::fetch_pace(sh.at.chunk);  // of kConsumerThreads lines
  uint32_t due = now_ns(), preceded = due;
#pragma unroll 1
  for (int i = thread + member * kConsumerThreads; i < Storage::kFetchedBlocks * kBlockTokens * kLines;
       i += p.tiles_per_group * kConsumerThreads, due += pace) {
    uint32_t now;
    do {
      now = now_ns();
      if (precedes) {
        preceded = now;
      } else if (!Storage::fetches_on(now - preceded)) {
        return;
      } else if (i < kBlockTokens * kLines) {
        i += kBlockTokens * kLines;
      }
    } while (int(now - due) < 0);
    const int nth = unsigned(i) / unsigned(kLines);
    const char* kv;
    if (!guessed_row(p, seg, seg.lo * kBlockTokens + nth, kv)) return;
    prefetch(kv + (i - nth * kLines) * 128);
  }
}

// Shows a note to those who wait for it, and loads its queries when the last segment's are no longer needed; one thread. The queries of a
// block's first tile of 64 rows come before any KV: nothing can be done without them. asked: they have been asked for.
template <bool kMerges, typename Storage>
__device__ __forceinline__ void announce(const MlaDecodeParams& p, Storage& sh, const CUtensorMap* map_q, const Worker& worker, int number,
                                         bool asked = false) {
  using namespace ptx;
  const Note& note = sh.note[number & 1];
  int row;
  const bool any = queries_of<Storage>(p, note, worker, row), first = number == 0 && sizeof(sh.q) > kTileBytes * kTiles / 2;
  if (first && any && !asked) load_queries(sh, map_q, row);
  mbarrier_arrive(smem_address(&sh.note_full[number & 1]));
  if (number > 0) {
    while (!mbarrier_try_wait(smem_address(&sh.q_empty), (number & 1) ^ 1)) __nanosleep(100);  // most of a segment: not at the cost of others
  }
  if (kMerges && number > 0) sh.places[number & 3] = place_of(sh.at, note.seg, worker.group);  // seen with the queries
  if (!any) {
    mbarrier_arrive(smem_address(&sh.q_full));
  } else if (!first && !asked) {
    load_queries(sh, map_q, row);
  }
  if (number == 0) trace(kTraceQueriesAsked);
}

// The notes after the first, by one warp; the last one's number. A note's place is free when the queries of the segment before it could be
// loaded.
template <bool kMerges, typename AnyShapes, typename Storage>
__device__ __forceinline__ int announce_others(const MlaDecodeParams& p, Storage& sh, const CUtensorMap* map_q, const Worker& worker,
                                               const AnyShapes& shapes) {
  int number = 1;
  for (; sh.note[(number - 1) & 1].more; ++number) {
    SegmentWalk walk = sh.walk;
    Note note;
    next_note<Storage::kRows>(p, shapes, sh.at, worker, walk, note);
    __syncwarp();
    if ((threadIdx.x & 31) == 0) {
      sh.walk = walk;
      sh.note[number & 1] = note;
      announce<kMerges>(p, sh, map_q, worker, number);
      if constexpr (!kMerges) describe(p, sh, worker, number);
    }
    __syncwarp();
  }
  return number - 1;
}
template <bool kMerges, typename Storage>
__device__ __forceinline__ int announce_rest(const MlaDecodeParams& p, Storage& sh, const CUtensorMap* map_q, const Worker& worker) {
  if (!kMerges && (threadIdx.x & 31) == 0) describe(p, sh, worker, 0);
  if (sh.known) {
    return announce_others<kMerges>(p, sh, map_q, worker, KnownShapes{p, sh.seq_lens});
  } else {
    return announce_others<kMerges>(p, sh, map_q, worker, Shapes(p, Storage::kRows));
  }
}

// Blocks side by side on the same KV drift apart: what one has read has to stay in L2 for the others.
__device__ __forceinline__ uint64_t kv_policy(const MlaDecodeParams& p) { return p.tiles_per_group > 1 ? ptx::kEvictLast : ptx::kEvictFirst; }

// Asks for the first KV block of a guessed segment once what comes before has ended, while the clerk looks whether the guess was right; the
// producer. Notes how many blocks have been asked for rightly. Like any guess it may be off, and the id be anything: copies outside the
// tensor bring zeros.
template <typename Storage>
__device__ __forceinline__ void ask_ahead(const MlaDecodeParams& p, const CUtensorMap* map_kv, const CUtensorMap* map_tile, Storage& sh) {
  using namespace ptx;
  const Note& note = sh.note[0];
  const unsigned blocks_of_page = max(unsigned(p.page_size) / kBlockTokens, 1u);
  const int lo = note.seg.lo, page = unsigned(lo) / blocks_of_page;
  const bool asks = note.any && note.seg.hi > lo && page < p.block_table_stride && p.page_size % kBlockTokens == 0;
  const int32_t* entry = p.block_table + note.seg.seq * p.block_table_stride + page;
  const int id = asks ? __ldcg(entry) : 0, row_in_page = (lo - page * blocks_of_page) * kBlockTokens;
  bar_arrive(kPlaced, kPlacedThreads<Storage>);
  wait_for_precedent();
  int again = id;
  if (asks) again = __ldcg(entry);
  if (asks && (threadIdx.x & 31) == 0) {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const int unit = i == 0 ? kRopeUnit : i - 1;
      const uint32_t bar = smem_address(&sh.full[0][unit]);
      mbarrier_expect_tx(bar, kTileBytes * unit_tiles(unit));
      tma_load_4d(smem_address(sh.kv[0][unit * kUnitTiles]), unit == kRopeUnit ? map_tile : map_kv, bar, 0, row_in_page, unit * kUnitTiles,
                  id, kv_policy(p));
    }
  }
  mbarrier_wait(smem_address(&sh.note_full[0]), 0);  // the clerk has found the place
  const bool right = sh.known && again == id;
  if ((threadIdx.x & 31) == 0) {
    if (__builtin_expect(asks && !right, 0)) take_back(sh.full[0], kUnits);
    sh.ahead = asks && right ? 1 : 0;
  }
  __syncwarp();
}

// The last segment that a block has loaded, and where its KV buffers' turns stand.
struct Loaded {
  int number;
  uint32_t empty_parity;  // of buffers 0 and 1, a bit each
};

// When a worker asks for its KV blocks: no sooner than at its share of nine tenths of memory's rate, once those are used up that it may have fetched
// into L2. If all ask for whatever they have room for, memory gives less than that, and more to some multiprocessors than to others.
template <typename Storage>
struct Pace {
  static constexpr uint32_t kAhead = 1 << 24;  // ns; a block that is due later than that was due before the clock's half of 32 bits came round
  uint32_t interval = 0, due = 0;

  __device__ __forceinline__ void start(const MlaDecodeParams& p, const LinePosition& at) {
    if (at.chunk < Storage::kPacedFrom || p.block_ps == 0) return;
    interval = pace_interval(p, at, Storage::kRows);
    due = now_ns() - interval;  // two may be asked for at once
  }
  // Where a block isn't waited with.
  __device__ __forceinline__ void pass() { due = now_ns(); }
  __device__ __forceinline__ void wait() {
    if (interval == 0) return;
    while (due - now_ns() - 1 < kAhead) {
    }
    due += interval;
  }
};

// Pages of 16, 32 or a multiple of 64 tokens: one warp, by tensor maps.
template <bool kPaced, typename Storage>
__device__ __forceinline__ Loaded produce_tma(const MlaDecodeParams& p, const CUtensorMap* map_kv, const CUtensorMap* map_tile,
                                            Storage& sh) {
  using namespace ptx;
  const int lane = threadIdx.x & 31;
  const uint64_t policy = kv_policy(p);
  const int pages_per_block = p.page_size < kBlockTokens ? kBlockTokens / unsigned(p.page_size) : 1;
  const int blocks_per_page = p.page_size > kBlockTokens ? unsigned(p.page_size) / kBlockTokens : 1;
  uint32_t empty_parity = 3;  // of buffers 0 and 1, a bit each
  int number = 0;
  Pace<Storage> pace;
  for (;; ++number) {
    mbarrier_wait(smem_address(&sh.note_full[number & 1]), (number >> 1) & 1);
    const Segment seg = sh.note[number & 1].seg;
    if (!sh.note[number & 1].any) break;
    const int more = sh.note[number & 1].more;
    // Page ids, 32 at a time and one set ahead.
    const int32_t* table = p.block_table + seg.seq * p.block_table_stride;
    const int page_end = p.page_size == kBlockTokens ? seg.shape.blocks : ceil_div(seg.shape.seq_len, p.page_size);
    int id_base = (blocks_per_page == 1 ? seg.lo : seg.lo / unsigned(blocks_per_page)) * pages_per_block;
    int ids = id_base + lane < page_end ? __ldcg(table + id_base + lane) : 0;
    int next_ids = id_base + 32 + lane < page_end ? __ldcg(table + id_base + 32 + lane) : 0;
    int ahead = 0;
    if constexpr (Storage::kAsksAhead) ahead = number == 0 ? sh.ahead : 0;
    empty_parity ^= ahead;
    if (kPaced && number == 0) pace.start(p, sh.at);
    const auto order = Storage::order(p, seg, number);
    for (int next = seg.lo + ahead; next < seg.hi; ++next) {
      const int n = next - seg.lo, blk = seg.lo + order(n), buffer = n & 1;
      if constexpr (kPaced) {
        if (n < order.mixed()) {
          pace.pass();
        } else {
          pace.wait();
        }
      }
      const int page_of_block = blocks_per_page == 1 ? blk : blk / unsigned(blocks_per_page);
      const int first_page = page_of_block * pages_per_block;
      if (first_page - id_base >= 32) {
        id_base += 32;
        ids = next_ids;
        next_ids = id_base + 32 + lane < page_end ? __ldcg(table + id_base + 32 + lane) : 0;
      }
      const int row_in_page = (blk - page_of_block * blocks_per_page) * kBlockTokens;
      const int id = __shfl_sync(0xffffffffu, ids, first_page - id_base);
      // Pages of this block that hold tokens: the rest of the table is never read and never loaded.
      const int pages = min(pages_per_block, page_end - first_page);
      const uint32_t tile_bytes = pages_per_block == 1 ? kTileBytes : uint32_t(pages * p.page_size) * kTileCols * 2;
      auto load = [&](const CUtensorMap* map, uint32_t dst, uint32_t bar, int tile, int row, int page_id) {
        tma_load_4d(dst, map, bar, 0, row, tile, page_id, policy);
      };
#pragma unroll
      for (int i = 0; i < kRegions; ++i) {
        const int region = Storage::kLeftFirst || buffer == 0 ? region_order(0, i) : region_order(1, i);
        mbarrier_wait(smem_address(&sh.empty[buffer][region]), (empty_parity >> buffer) & 1);
        const int units = i == 0 ? 1 : kHalfUnits;
#pragma unroll
        for (int u = 0; u < units; ++u) {
          const int unit = region_first_unit(region) + u;
          const uint32_t bar = smem_address(&sh.full[buffer][unit]);
          if (lane == 0) mbarrier_expect_tx(bar, tile_bytes * unit_tiles(unit));
          if (pages_per_block == 1) {
            const int tile = unit * kUnitTiles;
            if (lane == 0) load(unit == kRopeUnit ? map_tile : map_kv, smem_address(sh.kv[buffer][tile]), bar, tile, row_in_page, id);
          } else {
#pragma unroll 1
            for (int t = unit * kUnitTiles; t < unit * kUnitTiles + unit_tiles(unit); ++t) {
#pragma unroll 1
              for (int page = 0; page < pages; ++page) {
                const int page_id = __shfl_sync(0xffffffffu, ids, first_page + page - id_base);
                if (lane == 0) load(map_tile, smem_address(sh.kv[buffer][t]) + page * p.page_size * 128, bar, t, 0, page_id);
              }
            }
          }
        }
      }
      empty_parity ^= 1 << buffer;
    }
    if (more == 0) break;
  }
  return {number, empty_parity};
}

// Any page size: 128 threads gather rows with 16-byte asynchronous copies.
template <typename Storage>
__device__ __forceinline__ void produce_gather(const MlaDecodeParams& p, const CUtensorMap* map_q, Storage& sh) {
  using namespace ptx;
  const int thread = threadIdx.x & 127;
  uint32_t empty_parity = 3;  // of buffers 0 and 1, a bit each
  int pending = -1;  // buffer * kRegions + region of the copies committed last
  auto publish = [&](int what) {
    fence_proxy_async();
    const int buffer = what / kRegions, region = what % kRegions;
    for (int u = 0; u < region_units(region); ++u) mbarrier_arrive(smem_address(&sh.full[buffer][region_first_unit(region) + u]));
  };
  const char* kv = static_cast<const char*>(p.kv);
  for (int number = 0, more = 1; more != 0; ++number) {
    // Nothing may stay unpublished while waiting for the consumers.
    cp_async_wait<0>();
    if (pending >= 0) publish(pending);
    pending = -1;
    if (thread == 0) {
      const Worker worker(p);
      if (number > 0) next_note<Storage::kRows>(p, Shapes(p, Storage::kRows), sh.at, worker, sh.walk, sh.note[number & 1]);
      announce<false>(p, sh, map_q, worker, number);
      describe(p, sh, worker, number);
    }
    mbarrier_wait(smem_address(&sh.note_full[number & 1]), (number >> 1) & 1);
    const Segment seg = sh.note[number & 1].seg;
    if (!sh.note[number & 1].any) return;
    more = sh.note[number & 1].more;
    const int32_t* table = p.block_table + seg.seq * p.block_table_stride;
    const int chunk = thread & 7, first_row = thread >> 3;  // 8 chunks of 16 bytes a row, 16 rows at a time
    for (int blk = seg.lo; blk < seg.hi; ++blk) {
      const int buffer = (blk - seg.lo) & 1;
      const char* rows[4];
      uint32_t bytes[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int token = blk * kBlockTokens + r * 16 + first_row;
        const bool valid = token < seg.shape.seq_len;
        const int64_t page = valid ? __ldcg(table + unsigned(token) / unsigned(p.page_size)) : 0;
        rows[r] = valid ? kv + (page * p.kv_page_stride + int64_t(unsigned(token) % unsigned(p.page_size)) * p.kv_row_stride) * 2 : kv;
        bytes[r] = valid ? 16 : 0;
      }
#pragma unroll 1
      for (int i = 0; i < kRegions; ++i) {
        const int region = region_order(buffer, i);
        const uint32_t bar = smem_address(&sh.empty[buffer][region]);
        if (pending >= 0 && !mbarrier_test_wait(bar, (empty_parity >> buffer) & 1)) {
          cp_async_wait<0>();
          publish(pending);
          pending = -1;
        }
        mbarrier_wait(bar, (empty_parity >> buffer) & 1);
        for (int t = region_first_tile(region); t < region_first_tile(region) + region_tiles(region); ++t) {
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            const int row = r * 16 + first_row;
            cp_async16(smem_address(sh.kv[buffer][t]) + row * 128 + ((chunk ^ (row & 7)) << 4), rows[r] + t * 128 + chunk * 16, bytes[r]);
          }
        }
        cp_async_commit();
        if (pending >= 0) {
          cp_async_wait<1>();
          publish(pending);
        }
        pending = buffer * kRegions + region;
      }
      empty_parity ^= 1 << buffer;
    }
  }
  cp_async_wait<0>();
  if (pending >= 0) publish(pending);
}

}  // namespace flashmla::decode
