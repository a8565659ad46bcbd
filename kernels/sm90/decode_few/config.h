// Sizes of the Hopper decode kernel for up to 16 query rows a sequence.
#pragma once
#include "../decode/config.h"
#include "../ptx/wgmma_n16.h"

namespace flashmla::decode_few {

using decode::kConsumerThreads;
using decode::kNothing;
using decode::kRopeTile;
using decode::kTileBytes;
using decode::kTiles;
using decode::kValueWidth;

constexpr int kRows = 16;
constexpr int kQueryTileBytes = kRows * decode::kTileCols * 2;  // 2 KiB, for Q and P alike
constexpr int kLoadingThreads = 64;  // the producer and the clerk
constexpr int kThreads = kConsumerThreads + kLoadingThreads;
constexpr int kColumns = 4;  // query rows that a thread has values of: columns of its products
constexpr int kHalfTiles = 4;

// Named barriers of a warpgroup, beside those of decode::NamedBarrier that are used here too.
enum NamedBarrier : int { kWarpgroup0 = 1, kWarpgroup1 = 2 };

// What both kernels have stands in the same words in ../decode/config.h.
struct SharedStorage {
  static constexpr int kRows = decode_few::kRows;
  static constexpr int kLoadingThreads = decode_few::kLoadingThreads;
  static constexpr bool kAsksAhead = true;
  uint8_t q[kTiles][kQueryTileBytes];
  uint8_t kv[2][kTiles][kTileBytes];        // buffer w belongs to warpgroup w
  uint8_t p[2][2][kQueryTileBytes];         // [warpgroup][block in turn]
  float4 exchange[2][2 * kHalfTiles][128];  // what warpgroup w gives the other; then that one's rows on their way out
  float tops[2][4][kRows], sums[2][4][kRows];
  uint64_t full[2][decode::kUnits];
  uint64_t empty[2][decode::kRegions];
  uint64_t q_full, q_empty;
  uint64_t note_full[2];
  LinePosition at;
  SegmentWalk walk;
  decode::Note note[2];
  PartPlace places[4];
  int precedes;
  int known;
  int ahead;  // blocks of the first segment that the producer has asked for already
  int32_t seq_lens[kKnownLengths];
};
constexpr int kSharedBytes = sizeof(SharedStorage) + 1024;
static_assert(kSharedBytes <= 232448, "shared memory of one block");

}  // namespace flashmla::decode_few
