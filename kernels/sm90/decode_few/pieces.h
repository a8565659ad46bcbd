// How the blocks of the combine kernels share what there is to merge: pieces of a tile's parts, the same words of each.
#pragma once
#include <stdint.h>

namespace flashmla::decode_few {

constexpr int kCombineThreads = 128;
constexpr int kPartWords = 1024;        // of 16 rows
constexpr int kMostPieces = 7;  // of a tile, as a power of two

// Words [first, first + words) of an entry's parts, for one block; entry -1: none.
struct Piece {
  int entry, first, words;
};

// Of all entries as many pieces, a power of two up to 128. part_words: of a part, a power of two.
__device__ __forceinline__ Piece piece_of(int part_words, int entry, int piece, int pieces) {
  const int words = part_words >> (31 - __clz(pieces));
  return {entry, piece * words, words};
}

// Of the entries that are active, a bit each, as many pieces as there are blocks for: at least one for each.
__device__ __forceinline__ Piece piece_of_active(int part_words, const uint32_t* active, unsigned block, unsigned blocks) {
  int count = 0;
#pragma unroll
  for (int w = 0; w < kCombineThreads / 32; ++w) count += __popc(active[w]);
  const int shift = min(31 - __clz(max(blocks / max(count, 1), 1u)), kMostPieces), words = part_words >> shift;
  int left = block >> shift;
  Piece piece = {-1, (int(block) & ((1 << shift) - 1)) * words, words};
#pragma unroll 1
  for (int w = 0; left < count && piece.entry < 0; ++w) {
    const int here = __popc(active[w]);
    if (left < here) piece.entry = w * 32 + __fns(active[w], 0, left + 1);
    left -= here;
    count -= here;
  }
  return piece;
}

}  // namespace flashmla::decode_few
