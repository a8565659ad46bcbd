// Sizes of the Hopper decode kernels with tiles of 16 and of 32 query rows.
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

constexpr int kRows = 16;  // query rows of a product
constexpr int kRowTileBytes = kRows * decode::kTileCols * 2;  // 2 KiB, of Q and P alike
constexpr int kLoadingThreads = 64;  // the producer and the clerk
constexpr int kThreads = kConsumerThreads + kLoadingThreads;
constexpr int kColumns = 4;  // query rows that a thread has values of: columns of its products
constexpr int kHalfTiles = 4;

// Whether the warpgroups of a tile share its rows, 16 each, and both take every block; else they share the blocks.
__host__ __device__ constexpr bool by_rows(int tile_rows) { return tile_rows > kRows; }

// Named barriers of a warpgroup, beside those of decode::NamedBarrier that are used here too.
enum NamedBarrier : int { kWarpgroup0 = 1, kWarpgroup1 = 2 };

// What both kernels have stands in the same words in ../decode/config.h.
template <int kTileRows>
struct SharedStorage {
  static constexpr bool kByRows = by_rows(kTileRows);
  static constexpr int kRows = kTileRows;
  static constexpr int kLoadingThreads = decode_few::kLoadingThreads;
  static constexpr bool kAsksAhead = true;
  static constexpr int kFetchedBlocks = 4;  // KV blocks that are fetched into L2 at most while what comes before runs
  static constexpr int kPacedFrom = 8;
  static constexpr bool kLeftFirst = kByRows;
  static constexpr int kReleases = kByRows ? 8 : 4;
  uint8_t q[kTiles][kTileRows / decode_few::kRows][kRowTileBytes];
  uint8_t kv[2][kTiles][kTileBytes];  // buffer w belongs to warpgroup w where they share the blocks
  uint8_t p[2][2][kRowTileBytes];     // [warpgroup][block in turn]
  // What warpgroup w gives the other where they share the blocks; then that one's rows on their way out. Else those of warpgroup w.
  float4 exchange[2][(kByRows ? 1 : 2) * kHalfTiles][128];
  float tops[2][4][decode_few::kRows], sums[2][4][decode_few::kRows];
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

  // At which pace, for workers of so many KV blocks: 1.3 or 1.8 times memory's rate, since kConsumerThreads lines are 4 / 9 of a block.
  __device__ __forceinline__ static uint32_t fetch_pace(int chunk) { return kByRows && chunk < 16 ? 3000 : 4000; }
  // Whether fetching ahead goes on so many nanoseconds after what comes before has ended.
  __device__ __forceinline__ static bool fetches_on(uint32_t ns) { return kByRows && ns < 1500; }
  // Only what is guessed is fetched ahead. Page ids of smaller pages than a block are held for too few blocks to go back.
  __device__ __forceinline__ static BlockOrder order(const MlaDecodeParams& p, const Segment& seg, int number) {
    return BlockOrder(seg.hi - seg.lo, number == 0 && lengths_known(p) ? kFetchedBlocks : 0, p.page_size >= kBlockTokens);
  }
};
template <int kTileRows>
constexpr int kSharedBytes = sizeof(SharedStorage<kTileRows>) + 1024;
static_assert(3 * SharedStorage<16>::kFetchedBlocks <= 32, "page ids that the producer holds");
static_assert(kSharedBytes<16> <= 209920 && kSharedBytes<32> <= 212992, "with two blocks of the combine kernel beside it");

}  // namespace flashmla::decode_few
