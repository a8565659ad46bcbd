// The split-KV schedule, derived on the device from the lengths: no plan in memory, so a captured graph follows new lengths.
//
// All work lies on one line. A row-tile group of a sequence with n blocks of 64 tokens takes tile_overhead + n units of it; group
// worker w owns units [w * chunk, (w + 1) * chunk). A tile group cut by a chunk boundary is split, and its parts are merged by
// the combine kernel, which recomputes the same line.
#pragma once
#include "../include/flashmla_params.h"

namespace flashmla {

constexpr int kBlockTokens = 64;

struct SequenceShape {
  int query_start;  // first query row
  int s_q;
  int seq_len;
  int blocks;       // 64-token blocks
  int groups;       // row-tile groups
};

__device__ __forceinline__ SequenceShape sequence_shape(const MlaDecodeParams& p, int seq, int tile_rows) {
  SequenceShape s;
  if (p.query_start != nullptr) {
    s.query_start = p.query_start[seq];
    s.s_q = p.query_start[seq + 1] - s.query_start;
  } else {
    s.query_start = seq * p.s_q;
    s.s_q = p.s_q;
  }
  s.seq_len = p.seq_lens[seq];
  s.blocks = (s.seq_len + kBlockTokens - 1) / kBlockTokens;
  const int group_rows = tile_rows * p.tiles_per_group;
  s.groups = (s.s_q * p.h_q + group_rows - 1) / group_rows;
  return s;
}

__device__ __forceinline__ int64_t line_units(const MlaDecodeParams& p, const SequenceShape& s) {
  return int64_t(s.groups) * (s.blocks + p.tile_overhead);
}

// Where a position of the line falls. Computed by one full warp; every lane gets the result.
struct LinePosition {
  int64_t chunk;      // units of a group worker
  int64_t total;      // length of the line
  int64_t seq_start;  // position where `seq` starts
  int seq;            // sequence that contains the position, or b when it is past the end
};

__device__ __forceinline__ LinePosition locate(const MlaDecodeParams& p, int tile_rows, int64_t worker, int64_t offset) {
  // Each lane takes a run of sequences: their lengths are on the way together.
  const int lane = threadIdx.x & 31, run = (p.batch + 31) / 32;
  const int first = min(lane * run, p.batch), end = min(first + run, p.batch);
  int64_t mine = 0;
  int fewest = 0x7fffffff, most = 0;
#pragma unroll 4
  for (int s = first; s < end; ++s) {
    const SequenceShape shape = sequence_shape(p, s, tile_rows);
    mine += line_units(p, shape);
    if (shape.groups > 0) {
      fewest = min(fewest, shape.blocks + p.tile_overhead);
      most = max(most, shape.blocks + p.tile_overhead);
    }
  }
  fewest = __reduce_min_sync(0xffffffffu, fewest);
  most = __reduce_max_sync(0xffffffffu, most);
  int64_t upto = mine;
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const int64_t below = __shfl_up_sync(0xffffffffu, upto, d);
    if (lane >= d) upto += below;
  }
  LinePosition at;
  at.total = __shfl_sync(0xffffffffu, upto, 31);
  const int group_workers = p.workers / p.tiles_per_group;
  at.chunk = (at.total + group_workers - 1) / group_workers;
  if (at.chunk < p.min_blocks) at.chunk = p.min_blocks;
  // Equal tiles: whole ones to each worker, where that costs less than merging split ones (a sixteenth, about).
  if (fewest == most) {
    const int64_t whole = (at.chunk + most - 1) / most * most;
    if (whole <= at.chunk + at.chunk / 16) at.chunk = whole;
  }
  const int64_t target = worker * at.chunk + offset;
  const unsigned hit = __ballot_sync(0xffffffffu, mine > 0 && upto > target);
  at.seq = p.batch;
  at.seq_start = at.total;
  if (hit != 0) {
    const int owner = __ffs(hit) - 1;
    int seq = first;
    int64_t start = upto - mine;
    if (lane == owner) {
      for (; seq + 1 < end; ++seq) {
        const int64_t next = start + line_units(p, sequence_shape(p, seq, tile_rows));
        if (next > target) break;
        start = next;
      }
    }
    at.seq = __shfl_sync(0xffffffffu, seq, owner);
    at.seq_start = __shfl_sync(0xffffffffu, start, owner);
  }
  return at;
}

// One worker's part of one row-tile group: blocks [lo, hi) of the sequence.
struct Segment {
  SequenceShape shape;
  int seq;
  int group;
  int lo, hi;
  int64_t group_start;  // where the group starts on the line
  __device__ bool whole() const { return lo == 0 && hi == shape.blocks; }
};

// Walks the segments of one group worker in order.
struct SegmentWalk {
  int64_t pos, end, seq_start;
  int seq;

  __device__ SegmentWalk(const LinePosition& at, int64_t worker) {
    pos = worker * at.chunk;
    end = pos + at.chunk < at.total ? pos + at.chunk : at.total;
    seq = at.seq;
    seq_start = at.seq_start;
  }

  __device__ bool next(const MlaDecodeParams& p, int tile_rows, Segment& out) {
    while (pos < end) {
      const SequenceShape s = sequence_shape(p, seq, tile_rows);
      const int units = s.blocks + p.tile_overhead;
      const int64_t seq_end = seq_start + int64_t(units) * s.groups;
      if (pos >= seq_end) {
        seq_start = seq_end;
        ++seq;
        continue;
      }
      const int64_t group = (pos - seq_start) / units;
      const int64_t group_start = seq_start + group * units;
      const int64_t stop = group_start + units < end ? group_start + units : end;
      const int64_t first = pos - group_start;
      const int64_t lo = first - p.tile_overhead, hi = stop - group_start - p.tile_overhead;
      pos = stop;
      out.shape = s;
      out.seq = seq;
      out.group = int(group);
      out.group_start = group_start;
      out.lo = lo > 0 ? int(lo) : 0;
      out.hi = hi > 0 ? int(hi) : 0;
      // A sequence of no tokens still has rows to write: its first unit's owner does it.
      if (out.hi > out.lo || (s.blocks == 0 && first == 0)) return true;
    }
    return false;
  }
};

// Partial slot of a segment: a worker has at most one that starts a split tile (its last) and one that continues one (its first).
__device__ __forceinline__ int64_t partial_slot(int64_t worker, bool starts_tile) { return 2 * worker + (starts_tile ? 1 : 0); }

// What mla_combine has to know of a tile group whose first blocks are this worker's.
__device__ __forceinline__ MlaSplit describe_split(const MlaDecodeParams& p, const Segment& seg, int64_t worker, int64_t chunk) {
  const int group_rows = p.tile_rows * p.tiles_per_group;
  MlaSplit split = {};
  split.out_row = int64_t(seg.shape.query_start) * p.h_q + seg.group * group_rows;
  split.rows = min(group_rows, seg.shape.s_q * p.h_q - seg.group * group_rows);
  split.first_worker = int(worker);
  split.splits = seg.whole() ? 1 : int((seg.group_start + p.tile_overhead + seg.shape.blocks - 1) / chunk - worker) + 1;
  return split;
}

// Entry of p.splits for that group. Entries by worker are all written: see `no_split`.
__device__ __forceinline__ int64_t split_index(const MlaDecodeParams& p, const Segment& seg, int64_t worker) {
  if (!p.split_by_tile) return worker;
  const int group_rows = p.tile_rows * p.tiles_per_group;
  return int64_t(seg.seq) * ((p.s_q * p.h_q + group_rows - 1) / group_rows) + seg.group;
}

}  // namespace flashmla
