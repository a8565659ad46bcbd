// The split-KV schedule, derived on the device from the lengths: no plan in memory, so a captured graph follows new lengths.
//
// All work lies on one line. A row-tile group of a sequence with n blocks of 64 tokens takes overhead + n units of it; group
// worker w owns units [w * chunk, (w + 1) * chunk). A tile group cut by a chunk boundary is split, and its parts are merged by
// the combine kernel.
// Equal tile groups, fewer than workers, are laid out as whole pieces instead, if hardly longer ones than equal shares do: then no
// worker starts a second tile. With 64 rows a tile's pieces differ by a block at most, the first ones are the shorter: their workers start later.
// The very first may be longer than the others by a lead: its worker merges what they hand over.
// This code runs once in a call, and everything waits for it: it is kept short, with few divisions, all of them unsigned. Positions
// are 32-bit: up to 2^31 units, 1.4e11 tokens times tile groups.
#pragma once
#include "../include/flashmla_params.h"

namespace flashmla {

constexpr int kBlockTokens = 64;
constexpr int kSplitBlocks = 4;  // what splitting tiles costs a worker, in blocks, as measured

__device__ __forceinline__ int ceil_div(int a, int b) { return unsigned(a + b - 1) / unsigned(b); }

struct SequenceShape {
  int query_start;  // first query row
  int s_q;
  int seq_len;
  int blocks;       // 64-token blocks
  int groups;       // row-tile groups
};

// Shapes of the batch's sequences. What they share is worked out once.
struct Shapes {
  const MlaDecodeParams& p;
  int group_rows;

  __device__ __forceinline__ Shapes(const MlaDecodeParams& p_, int tile_rows) : p(p_), group_rows(tile_rows * p_.tiles_per_group) {}

  __device__ __forceinline__ SequenceShape operator()(int seq) const {
    SequenceShape s;
    s.query_start = seq * p.s_q;
    s.s_q = p.s_q;
    s.groups = p.groups;
    if (p.query_start != nullptr) {
      s.query_start = p.query_start[seq];
      s.s_q = p.query_start[seq + 1] - s.query_start;
      s.groups = ceil_div(s.s_q * p.h_q, group_rows);
    }
    s.seq_len = p.seq_lens[seq];
    s.blocks = ceil_div(s.seq_len, kBlockTokens);
    return s;
  }
};

// The same where every sequence has s_q query rows and the lengths are at hand: little code, and no branches.
struct KnownShapes {
  const MlaDecodeParams& p;
  const int32_t* seq_lens;

  __device__ __forceinline__ SequenceShape operator()(int seq) const {
    const int seq_len = seq_lens[seq];
    return {seq * p.s_q, p.s_q, seq_len, ceil_div(seq_len, kBlockTokens), p.groups};
  }
};
constexpr int kKnownLengths = 128;  // of as many sequences at most
constexpr int kKnownOfLane = kKnownLengths / 32;
__device__ __forceinline__ bool lengths_known(const MlaDecodeParams& p) { return p.query_start == nullptr && p.batch <= kKnownLengths; }

// How the line is laid out, and where a position of it falls.
struct LinePosition {
  int chunk;      // units of a group worker
  int total;      // length of the line
  int overhead;   // units of a tile group before its blocks; 0: each is laid out as whole pieces instead
  int equal;      // units of every tile group, where they are the same
  int lead;       // blocks that the first of whole pieces has before the units count
  int shorter;    // whole pieces of a tile, the first ones, that have a block less than their units
  int seq;        // sequence that contains the position, or b when it is past the end
  int seq_start;  // position where `seq` starts

  // Units of one tile group. Without tokens it has rows to write still.
  __device__ __forceinline__ int units(const SequenceShape& s) const { return equal > 0 ? equal : s.blocks + overhead; }
};

__device__ __forceinline__ int scan_lanes(int value) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const int below = __shfl_up_sync(0xffffffffu, value, d);
    if (lane >= d) value += below;
  }
  return value;
}

// Longest share of whole tiles that is taken in place of an equal one: what splitting costs. Of three tiles and more beside each other, which the
// tensor cores bound, that is some time; of fewer, bound by memory and power too, workers that have less to do make the others faster.
__device__ __forceinline__ int most_whole(const MlaDecodeParams& p, int equal) {
  return equal + (p.tiles_per_group > 2 ? min(equal / 16, kSplitBlocks) : equal / 16);
}

// Whole pieces of a tile of `rest` units: as many as its share of the workers, unless they would be shorter than any may be. Up to 32 rows no more than it takes:
// there a further part costs as much as shorter ones gain.
__device__ __forceinline__ void lay_out(LinePosition& at, const MlaDecodeParams& p, int rest, int share, int piece) {
  const bool all = p.tile_rows == 64 && piece > p.min_blocks;
  const int pieces = all ? share : max(ceil_div(rest, piece), 1);
  at.equal = pieces * piece;
  at.shorter = all ? at.equal - rest : 0;
}

// The line, and where group worker `worker` starts on it. Computed by one full warp; every lane gets the result.
__device__ __forceinline__ LinePosition locate(const MlaDecodeParams& p, const Shapes& shapes, int worker) {
  constexpr unsigned kAll = 0xffffffffu;
  // Each lane takes a run of sequences: their lengths are on the way together.
  const int lane = threadIdx.x & 31, run = ceil_div(p.batch, 32);
  const int first = min(lane * run, p.batch), end = min(first + run, p.batch);
  int mine = 0, my_groups = 0, fewest = 0x7fffffff, most = 0;
#pragma unroll 4
  for (int s = first; s < end; ++s) {
    const SequenceShape shape = shapes(s);
    mine += shape.groups * (shape.blocks + p.tile_overhead);
    my_groups += shape.groups;
    if (shape.groups > 0) {
      fewest = min(fewest, shape.blocks);
      most = max(most, shape.blocks);
    }
  }
  fewest = __reduce_min_sync(kAll, fewest);
  most = __reduce_max_sync(kAll, most);
  const int groups = p.query_start == nullptr ? p.batch * p.groups : __reduce_add_sync(kAll, my_groups);
  const int workers = p.group_workers;
  int upto = scan_lanes(mine);
  LinePosition at;
  at.overhead = p.tile_overhead;
  at.equal = 0;
  at.lead = 0;
  at.shorter = 0;
  at.total = __shfl_sync(kAll, upto, 31);
  // Two divisions at once.
  const int quotient = lane == 0 ? ceil_div(at.total, workers) : unsigned(workers) / unsigned(max(groups, 1));
  at.chunk = max(__shfl_sync(kAll, quotient, 0), p.min_blocks);
  const int limit = at.chunk + at.chunk / 16;

  if (groups > 0 && fewest == most) {
    const int tile = most + at.overhead, share = __shfl_sync(kAll, quotient, 1);
    if (groups <= workers) {
      // Equal tiles, few: each in the same number of pieces.
      const int lead = share > 1 ? p.first_lead : 0, rest = max(most - lead, 0), piece = max(ceil_div(rest, share), p.min_blocks);
      if (piece <= limit) {
        at.chunk = piece;
        at.overhead = 0;
        at.lead = lead;
        lay_out(at, p, rest, share, piece);
        mine = my_groups * at.equal;
        upto = scan_lanes(mine);
        at.total = __shfl_sync(kAll, upto, 31);
      }
    } else {
      // Equal tiles, many: whole ones to each worker, where that costs less than merging split ones (a sixteenth, about).
      const int whole = ceil_div(at.chunk, tile) * tile;
      if (whole <= most_whole(p, at.chunk)) at.chunk = whole;
    }
  }

  const int target = worker * at.chunk;
  const unsigned hit = __ballot_sync(kAll, mine > 0 && upto > target);
  at.seq = p.batch;
  at.seq_start = at.total;
  if (hit != 0) {
    const int owner = __ffs(hit) - 1;
    int seq = first, start = upto - mine;
    if (lane == owner && run > 1) {
      for (; seq + 1 < end; ++seq) {
        const SequenceShape shape = shapes(seq);
        const int next = start + shape.groups * at.units(shape);
        if (next > target) break;
        start = next;
      }
    }
    at.seq = __shfl_sync(kAll, seq, owner);
    at.seq_start = __shfl_sync(kAll, start, owner);
  }
  return at;
}

// The same from known lengths: lane i has those of sequences kKnownOfLane * i and after, 0 past the last. Straight through: whatever branches
// waits for its instructions, in code that runs once.
__device__ __forceinline__ LinePosition locate(const MlaDecodeParams& p, const int (&seq_lens)[kKnownOfLane], int worker) {
  constexpr unsigned kAll = 0xffffffffu;
  const int lane = threadIdx.x & 31, first = lane * kKnownOfLane;
  int units[kKnownOfLane], mine = 0, fewest = 0x7fffffff, most = 0;
#pragma unroll
  for (int i = 0; i < kKnownOfLane; ++i) {
    const int blocks = ceil_div(seq_lens[i], kBlockTokens);
    const bool exists = first + i < p.batch;
    units[i] = exists ? p.groups * (blocks + p.tile_overhead) : 0;
    mine += units[i];
    fewest = min(fewest, exists ? blocks : 0x7fffffff);
    most = max(most, blocks);
  }
  fewest = __reduce_min_sync(kAll, fewest);
  most = __reduce_max_sync(kAll, most);
  int upto = scan_lanes(mine);
  LinePosition at;
  at.overhead = p.tile_overhead;
  at.equal = 0;
  at.lead = 0;
  at.shorter = 0;
  at.total = __shfl_sync(kAll, upto, 31);
  const int groups = p.batch * p.groups, workers = p.group_workers;
  // Divisions at once where they can be; see above for what they are.
  const int quotient = ceil_div(lane == 0 ? at.total : workers - groups + 1, lane == 0 ? workers : groups);
  at.chunk = max(__shfl_sync(kAll, quotient, 0), p.min_blocks);
  const int limit = at.chunk + at.chunk / 16;
  if (fewest == most) {
    const bool few = groups <= workers;
    const int tile = most + at.overhead, share = __shfl_sync(kAll, quotient, 1), lead = share > 1 ? p.first_lead : 0, rest = max(most - lead, 0);
    const int ratio = ceil_div(few ? rest : at.chunk, few ? share : tile);
    const int chunk = few ? max(ratio, p.min_blocks) : ratio * tile;
    if (chunk <= (few ? limit : most_whole(p, at.chunk))) at.chunk = chunk;
    if (few && chunk <= limit) {
      at.overhead = 0;
      at.lead = lead;
      lay_out(at, p, rest, share, chunk);
      mine = 0;
#pragma unroll
      for (int i = 0; i < kKnownOfLane; ++i) {
        units[i] = first + i < p.batch ? p.groups * at.equal : 0;
        mine += units[i];
      }
      upto = scan_lanes(mine);
      at.total = __shfl_sync(kAll, upto, 31);
    }
  }

  const int target = worker * at.chunk;
  const unsigned hit = __ballot_sync(kAll, mine > 0 && upto > target);
  int seq = first, start = upto - mine;
#pragma unroll
  for (int i = 0; i < kKnownOfLane - 1; ++i) {
    if (start + units[i] <= target && seq == first + i) {
      start += units[i];
      ++seq;
    }
  }
  const int owner = max(__ffs(hit) - 1, 0);
  at.seq = hit != 0 ? __shfl_sync(kAll, seq, owner) : p.batch;
  at.seq_start = hit != 0 ? __shfl_sync(kAll, start, owner) : at.total;
  return at;
}

// One worker's part of one row-tile group: blocks [lo, hi) of the sequence.
struct Segment {
  SequenceShape shape;
  int seq;
  int group;
  int lo, hi;
  int group_start;  // where the group starts on the line
  __device__ bool whole() const { return lo == 0 && hi == shape.blocks; }
};

// How many of its blocks, the first ones, all queries of the sequence see whole: nothing in them is masked.
__device__ __forceinline__ int unmasked_blocks(const Segment& seg) {
  const int seen = max(seg.shape.seq_len - seg.shape.s_q + 1, 0) / kBlockTokens;
  return max(min(seg.hi, seen) - seg.lo, 0);
}

// Nanoseconds from one KV block that a worker asks for to its next, with which one that has a whole chunk of them ends when memory has brought
// all at p.block_ps each. Of what starting a tile counts for, its rows in and out are bytes as well: as many as a block's for 34 of them.
__device__ __forceinline__ uint32_t pace_interval(const MlaDecodeParams& p, const LinePosition& at, int tile_rows) {
  const float spent = fmaxf(float(at.overhead) - tile_rows / 34.f, float(at.shorter)), blocks = float(at.total) - float(p.batch * p.groups) * spent;
  return uint32_t(float(p.block_ps) * 1e-3f * __fdividef(blocks, float(at.chunk)));
}

// Walks the segments of one group worker in order.
struct SegmentWalk {
  int pos, end, seq_start, seq;

  SegmentWalk() = default;
  __device__ __forceinline__ SegmentWalk(const LinePosition& at, int worker) {
    pos = worker * at.chunk;
    end = min(pos + at.chunk, at.total);
    seq = at.seq;
    seq_start = at.seq_start;
  }

  template <typename AnyShapes>
  __device__ __forceinline__ bool next(const LinePosition& at, const AnyShapes& shapes, Segment& out) {
    while (pos < end && seq < shapes.p.batch) {
      const SequenceShape s = shapes(seq);
      const int units = at.units(s), seq_end = seq_start + units * s.groups;
      if (pos >= seq_end) {
        seq_start = seq_end;
        ++seq;
        continue;
      }
      const int group = s.groups == 1 ? 0 : unsigned(pos - seq_start) / unsigned(units);
      const int group_start = seq_start + group * units;
      const int stop = min(group_start + units, end), first = pos - group_start;
      pos = stop;
      out.shape = s;
      out.seq = seq;
      out.group = group;
      out.group_start = group_start;
      const int piece = int(__fdividef(float(first), float(at.chunk)) + 0.5f);  // where tiles are laid out as whole ones
      out.lo = first > 0 ? max(first - at.overhead, 0) + at.lead - min(piece, at.shorter) : 0;
      out.hi = min(stop - group_start - at.overhead + at.lead - min(piece + 1, at.shorter), s.blocks);
#if __CUDA_ARCH__ < 900
      // Past a shuffle ptxas can't merge these with the comparisons in whole(), which it gets wrong: see machine-code.mjs. The Hopper
      // kernels come out right without; the build refuses them else.
      out.lo = __shfl_sync(0xffffffffu, out.lo, 0);
      out.hi = __shfl_sync(0xffffffffu, out.hi, 0);
#endif
      // A sequence of no tokens still has rows to write: its first unit's owner does it.
      if (out.hi > out.lo || (s.blocks == 0 && first == 0)) {
        out.hi = max(out.hi, 0);
        return true;
      }
    }
    return false;
  }
};

// The group worker that has the last part of a tile group.
__device__ __forceinline__ int last_worker(const LinePosition& at, const Segment& seg) {
  return unsigned(seg.group_start + at.overhead + seg.shape.blocks - at.lead + at.shorter - 1) / unsigned(at.chunk);
}

// Which part of its tile group a segment is, and of how many.
struct PartPlace {
  int index, parts;
};
__device__ __forceinline__ PartPlace place_of(const LinePosition& at, const Segment& seg, int worker) {
  if (seg.whole()) return {0, 1};
  const int first = unsigned(seg.group_start + at.overhead) / unsigned(at.chunk);
  return {worker - first, last_worker(at, seg) - first + 1};
}

// Of parts merged in pairs: whether part `index` takes in part index + step, for step = 1, 2, 4, ...
__device__ __forceinline__ bool takes_in(const PartPlace& place, int step) {
  return (place.index & (2 * step - 1)) == 0 && place.index + step < place.parts;
}

// Of a tile's parts, from the first on, those that are the last work of their workers: all where tiles are whole pieces. `overhead`: the line's.
__device__ __forceinline__ int closing_parts(int parts, int overhead) { return overhead != 0 ? parts - 1 : parts; }

// Partial slot of a segment: a worker has at most one that starts a split tile (its last) and one that continues one (its first).
__device__ __forceinline__ int partial_slot(int worker, bool starts_tile) { return 2 * worker + (starts_tile ? 1 : 0); }

// Whether parts are kept in f16 with a scale for each row, or in f32: where there are many rows their bytes are what splitting costs.
__device__ __forceinline__ bool parts_in_halves(const MlaDecodeParams& p) { return p.tile_rows == 64 && p.s_q * p.h_q > 32; }

// What mla_combine has to know of a tile group whose first blocks are this worker's.
__device__ __forceinline__ MlaSplit describe_split(const MlaDecodeParams& p, const LinePosition& at, const Segment& seg, int worker) {
  const int group_rows = p.tile_rows * p.tiles_per_group;
  MlaSplit split = {};
  split.out_row = int64_t(seg.shape.query_start) * p.h_q + seg.group * group_rows;
  split.rows = min(group_rows, seg.shape.s_q * p.h_q - seg.group * group_rows);
  split.first_worker = worker;
  split.line = at.total;
  split.splits = seg.whole() ? 1 : last_worker(at, seg) - worker + 1;
  return split;
}

// Entry of p.splits for that group. Entries by worker are all written, first as 0.
__device__ __forceinline__ int split_index(const MlaDecodeParams& p, const Segment& seg, int worker) {
  return p.split_by_tile ? seg.seq * p.groups + seg.group : worker;
}

}  // namespace flashmla
