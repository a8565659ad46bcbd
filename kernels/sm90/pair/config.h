// Sizes of the Hopper decode kernel for pairs of blocks.
#pragma once
#include "../../common/schedule.h"
#include "../../common/trace.h"
#include "../../include/flashmla_params.h"
#include "../ptx/barrier.h"
#include "../ptx/cluster.h"
#include "../ptx/tma.h"
#include "../ptx/wgmma.h"

namespace flashmla::pair {

constexpr int kRows = 128;                      // query rows of a pair
constexpr int kValueWidth = 512;                // d_v
constexpr int kTileCols = 64;                   // 128 bytes: one swizzle span
constexpr int kTileBytes = 64 * kTileCols * 2;  // 8 KiB, for Q and KV alike
constexpr int kHalfTiles = 4;                   // value columns of a block of the pair: 256
constexpr int kTiles = kHalfTiles + 1;          // and the rotary tile, of which it multiplies one half
constexpr int kRopeTile = 8;                    // in the cache and in the queries
constexpr int kStages = 3;
constexpr int kThreads = 384;                   // two consumer warpgroups, one producer
constexpr int kConsumerRegisters = 240;
constexpr int kProducerRegisters = 504 - 2 * kConsumerRegisters;
constexpr int kWarps = 8;                       // of the consumers

enum NamedBarrier : int { kBothConsumers = 1, kZero0, kZero1 };

// A segment as the consumers need it, written by the producer.
struct Note {
  int seq_len, s_q, blocks;  // of the sequence
  int lo, hi;                // the segment's blocks
  int out_row;               // where the sequence's rows start in out and lse
  int first_row;             // of the tile, in the sequence
  int index, parts;          // which part of its tile
  int more;                  // whether another note may follow; parts < 0: there is no segment in this one
};

struct SharedStorage {
  uint8_t q[2][kTiles][kTileBytes];  // by warpgroup; its rotary tile last
  uint8_t kv[kStages][kTiles][kTileBytes];
  float4 scores[4][256];             // from the other block: its share of this thread's row
  uint4 p[2][256];                   // from the other block: P of the other row
  float factor[256];                 // and the factor on what came before
  float2 ends[64];                   // from the other block, at a segment's end: maximum and sum of the other row
  uint64_t full[kStages], empty[kStages];
  uint64_t q_full, q_empty;
  uint64_t scores_full[kWarps], p_full[kWarps], ends_full[kWarps];
  Note note[2];  // of this segment and the next
};
constexpr int kSharedBytes = sizeof(SharedStorage) + 1024;  // room to align to the swizzle's period
static_assert(kSharedBytes <= 232448, "shared memory of one block");

}  // namespace flashmla::pair
