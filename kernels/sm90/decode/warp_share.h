// How a tile's rows are shared out over the blocks that merge them, and a block's rows over its warps: see share.h.
#pragma once
#include "../../common/schedule.h"

namespace flashmla::decode {

// The first row of those that part `part` merges; the next one's is their end.
__device__ __forceinline__ int first_row_of(int part, int rows, int owners) { return ceil_div(rows * part, owners); }

// Rows of parts that a warp merges at most, if a tile has up to 144 parts.
constexpr int kMostTaken = 18;

// Which parts of which rows a warp merges: parts sub, sub + step, ... of rows first, first + 8, ...
struct WarpShare {
  int sub, step, first, rows, parts, lanes;  // lanes: of a row, a power of two

  __device__ __forceinline__ WarpShare(int all_parts, int begin, int end, int warp) {
    // 1, 2, 4 or 8 warps share the parts of a row; a warp has up to eight rows.
    const int own = end - begin, sharing = own > 4 ? 0 : own > 2 ? 1 : own > 1 ? 2 : 3;
    step = 1 << sharing;
    sub = warp & (step - 1);
    first = begin + (warp >> sharing);
    rows = first >= end ? 0 : sharing > 0 ? 1 : (end - first + 7) >> 3;
    parts = max(all_parts - sub + step - 1, 0) >> sharing;
    lanes = parts > 1 ? 1 << (32 - __clz(parts - 1)) : 1;
  }
};

}  // namespace flashmla::decode
