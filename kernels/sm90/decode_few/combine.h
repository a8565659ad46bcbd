// Merges the parts of split tiles that ./kernel.h has written: mla_combine for blocks that are small enough to stand beside decode blocks. They
// start with them, wait for their end, and let the decode after that start meanwhile.
//
// 1. Parts stand in memory as the decode kernel's threads held them, 1024 words of eight values of a query row for each 16 rows: see Part. Those of tiles beside each other
//    follow each other, so a tile group of kGroupRows is merged as one. A block takes a piece of its words; the threads that a piece leaves over share the
//    parts, in an order that depends on nothing but their number.
// 2. What there is to merge is most likely what there was the last time. So parts are asked for before the description is there again.
#pragma once
#include "../../common/combine.h"
#include "../../common/discard.h"
#include "output.h"
#include "pieces.h"

namespace flashmla::decode_few {

static_assert(kPartWords == kColumns * kConsumerThreads);
static_assert(kPartWords >> kMostPieces >= kLineWords && sizeof(Part) % kLineBytes == 0, "whole lines are a block's own");

// Eight values of a row and the sum of its weights, relative to the maximum m.
struct WordSum {
  float o[8], m, l;

  __device__ __forceinline__ void scale(float most) {
    const float factor = exp2_approx(m - base_of(most));
    m = most;
    l *= factor;
#pragma unroll
    for (int i = 0; i < 8; ++i) o[i] *= factor;
  }
  // Another sum. The same on both sides, so that lanes that take in each other's agree.
  __device__ __forceinline__ void add(const WordSum& other) {
    scale(fmaxf(m, other.m));
    const float weight = exp2_approx(other.m - base_of(m));
    l += weight * other.l;
#pragma unroll
    for (int i = 0; i < 8; ++i) o[i] += weight * other.o[i];
  }
  __device__ __forceinline__ WordSum of_lane(int mask) const {
    WordSum other;
#pragma unroll
    for (int i = 0; i < 8; ++i) other.o[i] = __shfl_xor_sync(0xffffffffu, o[i], mask);
    other.m = __shfl_xor_sync(0xffffffffu, m, mask);
    other.l = __shfl_xor_sync(0xffffffffu, l, mask);
    return other;
  }
};

// Which word of a part it is, and its row: `part` is which 16 rows it is of, `row` is of the tile group.
template <int kGroupRows>
struct WordPlace {
  int thread, part, c, row;
  __device__ __forceinline__ explicit WordPlace(int word)
      : thread(word % kConsumerThreads),
        part(kGroupRows > kRows ? word / kPartWords : 0),
        c(word / kConsumerThreads - part * kColumns),
        row(part * kRows + row_of_column(c, thread & 31)) {}
};
template <int kGroupRows>
constexpr int kWordsOfParts = kGroupRows / kRows * kPartWords;

// Parts first, first + step, ... of a word.
template <int kGroupRows>
__device__ __forceinline__ WordSum sum_parts(const MlaDecodeParams& p, int first_worker, int splits, int first, int step, const WordPlace<kGroupRows>& place) {
  constexpr int kBatch = 4;  // of five not all fit into the registers
  WordSum sum = {{}, -INFINITY, 0.f};
#pragma unroll 1
  for (int base = first; base < splits; base += kBatch * step) {
    uint4 word[kBatch];
    float2 of_row[kBatch];  // its maximum and sum
    uint32_t exponent[kBatch];
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const int i = min(base + u * step, splits - 1), slot = partial_slot(first_worker + i, i == 0);
      const Part& part = static_cast<const Part*>(p.partial_out)[slot * (kGroupRows / kRows) + place.part];
      word[u] = __ldcg(&part.words[place.c][place.thread]);
      exponent[u] = __ldcg(&part.exponents[place.thread][place.c]);
      of_row[u] = __ldcg(p.partial_lse + slot * kGroupRows + place.row);
    }
    float most = sum.m;
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      if (base + u * step >= splits) of_row[u] = make_float2(-INFINITY, 0.f);
      most = fmaxf(most, of_row[u].x);
    }
    sum.scale(most);
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const float weight = exp2_approx(of_row[u].x - base_of(most)), scaled = weight * __uint_as_float(exponent[u] << 23);
      sum.l += weight * of_row[u].y;
      const uint32_t pair[4] = {word[u].x, word[u].y, word[u].z, word[u].w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float2 v = __half22float2(*reinterpret_cast<const __half2*>(&pair[k]));
        sum.o[2 * k] += scaled * v.x;
        sum.o[2 * k + 1] += scaled * v.y;
      }
    }
  }
  return sum;
}

template <int kGroupRows>
__device__ __forceinline__ void write_word(const MlaDecodeParams& p, const MlaSplit& split, const WordSum& sum, const WordPlace<kGroupRows>& place) {
  const float factor = inverse(sum.l);
  const int64_t row = split.out_row + place.row;
  const int column = column_of_thread(place.thread);
  const int64_t at = row * kValueWidth + column;
  if (p.out_dtype == FLASHMLA_F32) {
#pragma unroll
    for (int i = 0; i < 8; ++i) static_cast<float*>(p.out)[at + column_of_value(i)] = sum.o[i] * factor;
  } else {
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const float lo = sum.o[i] * factor, hi = sum.o[i + 1] * factor;
      const uint32_t both = p.out_dtype == FLASHMLA_BF16 ? Bf16::pack(lo, hi) : F16::pack(lo, hi);
      uint16_t* out = static_cast<uint16_t*>(p.out) + at + column_of_value(i);
      out[0] = uint16_t(both);
      out[8] = uint16_t(both >> 16);
    }
  }
  if (column == 0) p.lse[row] = natural_lse(sum.m, sum.l);
}

// Whether there is something to merge in the entry of a sequence that may have no rows.
__device__ __forceinline__ bool has_parts(const MlaDecodeParams& p, int seq) {
  if (seq >= p.batch) return false;
  return __ldcg(p.query_start + seq + 1) > __ldcg(p.query_start + seq) && __ldcg(&p.splits[seq].splits) > 1;
}

// The block's piece of what a sequence for each thread says is there to merge. All of the block.
__device__ __forceinline__ Piece piece_of_block(int words, bool active) {
  __shared__ uint32_t of_warp[kCombineThreads / 32];
  const uint32_t mask = __ballot_sync(0xffffffffu, active);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) of_warp[threadIdx.x >> 5] = mask;
  __syncthreads();
  return piece_of_active(words, of_warp, blockIdx.x, gridDim.x);
}

// What is there to merge, as it stands in memory.
__device__ __forceinline__ MlaSplit read_split(const MlaDecodeParams& p, int entry) {
  MlaSplit split = {};
  if (entry < 0) return split;
  const int4* words = reinterpret_cast<const int4*>(p.splits + entry);
  const int4 head = __ldcg(words);
  split.out_row = int64_t(uint64_t(uint32_t(head.x)) | uint64_t(uint32_t(head.y)) << 32);
  split.rows = head.z;
  split.splits = head.w;
  const int2 tail = __ldcg(reinterpret_cast<const int2*>(words + 1));
  split.first_worker = tail.x;
  split.line = tail.y;
  return split;
}

// The same where nobody has confirmed it yet: whatever it says, its parts are in the workspace. It may change just now, so one thread reads it for
// all: they have to agree on whether it was right.
__device__ __forceinline__ MlaSplit guess_split(const MlaDecodeParams& p, int entry) {
  __shared__ MlaSplit of_all;
  if (threadIdx.x == 0) {
    MlaSplit split = read_split(p, entry);
    split.first_worker = min(max(split.first_worker, 0), p.group_workers - 1);
    split.splits = min(max(split.splits, 0), p.group_workers - split.first_worker);
    of_all = split;
  }
  __syncthreads();
  return of_all;
}

// Merges a piece of what `split` says. Its parts are asked for as `guess` says first; false, with nothing written, where that is something else
// or others() says so: the same for all of the block.
template <int kGroupRows, typename Others>
__device__ __forceinline__ bool merge(const MlaDecodeParams& p, const Piece& piece, const MlaSplit& guess, const MlaSplit& split,
                                      const Others& others) {
  __shared__ WordSum shared[kCombineThreads];
  const int width = min(piece.words, kCombineThreads), shift = 31 - __clz(width), groups = kCombineThreads >> shift;
  const int thread = threadIdx.x, group = thread >> shift;
#pragma unroll 1
  for (int first = piece.first; first < piece.first + piece.words; first += width) {
    const WordPlace<kGroupRows> place(first + (thread & (width - 1)));
    // Rows that aren't there are not read.
    const int splits = place.row < guess.rows ? guess.splits : 0;
    WordSum sum = sum_parts<kGroupRows>(p, guess.first_worker, splits, group, groups, place);
    const bool right = guess.splits == split.splits && guess.first_worker == split.first_worker && guess.rows == split.rows;
    if (first == piece.first && (others() || !right)) return false;
    if (split.splits < 2) return true;
#pragma unroll 1
    for (int mask = width; mask < 32; mask *= 2) sum.add(sum.of_lane(mask));
    if (groups > 1) {
      const int apart = max(width, 32);
      if (thread >= apart) shared[thread] = sum;
      __syncthreads();
      if (thread >= apart) return true;
#pragma unroll 1
      for (int other = thread + apart; other < kCombineThreads; other += apart) sum.add(shared[other]);
    }
    if (place.row < split.rows && thread < width) write_word(p, split, sum, place);
  }
  return true;
}

// Drops what of the parts the block has merged, and written in its sums. All of the block.
template <int kGroupRows>
__device__ __forceinline__ void discard_parts(const MlaDecodeParams& p, const Piece& piece, const MlaSplit& split) {
  if (split.splits < 2 || !flows_through_l2(split.line)) return;
  __syncthreads();
  const int lines = piece.words / kLineWords;
#pragma unroll 1
  for (int i = threadIdx.x; i < split.splits * lines; i += kCombineThreads) {
    const int part = unsigned(i) / unsigned(lines), slot = partial_slot(split.first_worker + part, part == 0);
    const WordPlace<kGroupRows> place(piece.first + (i - part * lines) * kLineWords);
    discard_line(&static_cast<const Part*>(p.partial_out)[slot * (kGroupRows / kRows) + place.part].words[place.c][place.thread]);
  }
}

// blockIdx.x is the entry, blockIdx.y the piece.
template <int kGroupRows>
__device__ __forceinline__ void combine(const MlaDecodeParams& p) {
  asm volatile("griddepcontrol.launch_dependents;");
  const Piece piece = piece_of(kWordsOfParts<kGroupRows>, blockIdx.x, blockIdx.y, gridDim.y);
  MlaSplit guess = guess_split(p, piece.entry);
  asm volatile("griddepcontrol.wait;" ::: "memory");
  const MlaSplit split = read_split(p, piece.entry);
#pragma unroll 1
  while (!merge<kGroupRows>(p, piece, guess, split, [] { return false; })) guess = split;
  discard_parts<kGroupRows>(p, piece, split);
}

// Of ragged queries: a plan is for more sequences than most steps have.
template <int kGroupRows>
__device__ __forceinline__ void combine_ragged(const MlaDecodeParams& p) {
  asm volatile("griddepcontrol.launch_dependents;");
  const int seq = threadIdx.x;
  bool active = has_parts(p, seq);
  Piece piece = piece_of_block(kWordsOfParts<kGroupRows>, active);
  MlaSplit guess = guess_split(p, piece.entry);
  asm volatile("griddepcontrol.wait;" ::: "memory");
  const bool is_active = has_parts(p, seq);
  MlaSplit split = read_split(p, piece.entry);
#pragma unroll 1
  while (!merge<kGroupRows>(p, piece, guess, split, [&] { return __syncthreads_or(active != is_active); })) {
    active = is_active;
    piece = piece_of_block(kWordsOfParts<kGroupRows>, active);
    guess = split = read_split(p, piece.entry);
  }
  discard_parts<kGroupRows>(p, piece, split);
}

}  // namespace flashmla::decode_few
