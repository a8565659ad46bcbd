// Sizes of the Hopper decode kernel.
#pragma once
#include <stddef.h>

#include "../../include/flashmla_params.h"
#include "../../common/order.h"
#include "../../common/schedule.h"
#include "../../common/trace.h"
#include "../ptx/barrier.h"
#include "../ptx/tma.h"
#include "../ptx/wgmma.h"

namespace flashmla::decode {

constexpr int kRows = 64;                      // query rows of a block
constexpr int kWidth = 576;                    // d_qk
constexpr int kValueWidth = 512;               // d_v
constexpr int kTileCols = 64;                  // 128 bytes: one swizzle span
constexpr int kTiles = kWidth / kTileCols;     // 9; tile 8 is the rotary part
constexpr int kRopeTile = kTiles - 1;
constexpr int kTileBytes = 64 * kTileCols * 2; // 8 KiB, for Q and KV alike
constexpr int kThreads = 384;                  // two consumer warpgroups, one producer
constexpr int kConsumerThreads = 256;
constexpr int kConsumerRegisters = 240;
constexpr int kProducerRegisters = 504 - 2 * kConsumerRegisters;

// Parts of a KV buffer that are freed together: [rotary], [value columns 0..255], [value columns 256..511].
enum Region : int { kRope = 0, kLeft = 1, kRight = 2, kRegions = 3 };
__host__ __device__ constexpr int region_first_tile(int region) { return region == kRope ? kRopeTile : region == kLeft ? 0 : 4; }
__host__ __device__ constexpr int region_tiles(int region) { return region == kRope ? 1 : 4; }

// What one copy brings and one barrier announces: a few tiles, or the rotary one.
constexpr int kUnitTiles = 2;
constexpr int kHalfUnits = 4 / kUnitTiles;
constexpr int kUnits = 2 * kHalfUnits + 1;
constexpr int kRopeUnit = kUnits - 1;
constexpr int kPartUnit = 0;  // whose barrier announces another block's part: one copy fills the buffer
__host__ __device__ constexpr int unit_of_tile(int tile) { return tile / kUnitTiles; }
__host__ __device__ constexpr int unit_tiles(int unit) { return unit == kRopeUnit ? 1 : kUnitTiles; }
__host__ __device__ constexpr int region_first_unit(int region) { return region == kRope ? kRopeUnit : region == kLeft ? 0 : kHalfUnits; }
__host__ __device__ constexpr int region_units(int region) { return region == kRope ? 1 : kHalfUnits; }

// What memory holds where something is waited for: a NaN that no arithmetic yields.
constexpr uint32_t kNothing = 0xffffffffu;

// Named barriers (0 is __syncthreads).
enum NamedBarrier : int { kP0Ready = 1, kP1Ready, kP0Free, kP1Free, kBothConsumers, kZero0, kZero1, kGuessed, kPlaced, kNoted, kScored, kHandedOver };

// The same for all lanes, and known to the compiler to be: else it does the arithmetic of matrix descriptors in each lane.
__device__ __forceinline__ int uniform(int v) { return __shfl_sync(0xffffffffu, v, 0); }
__device__ __forceinline__ Segment uniform(const Segment& seg) {
  const SequenceShape& s = seg.shape;
  return Segment{{uniform(s.query_start), uniform(s.s_q), uniform(s.seq_len), uniform(s.blocks), uniform(s.groups)},
                 uniform(seg.seq), uniform(seg.group), uniform(seg.lo), uniform(seg.hi), uniform(seg.group_start)};
}

// A segment of the block's work, written by the clerk.
struct Note {
  Segment seg;
  int any;   // whether there is one
  int more;  // whether another note may follow
};

struct SharedStorage {
  static constexpr int kRows = decode::kRows;
  static constexpr int kLoadingThreads = kThreads - kConsumerThreads;
  static constexpr bool kAsksAhead = false;  // whether what is guessed is asked for before the guess is confirmed
  static constexpr int kPacedFrom = 24;      // KV blocks of a worker from which on it asks for them at a pace
  static constexpr bool kLeftFirst = false;  // whether the left half is freed first in both buffers
  static constexpr int kReleases = 4;        // warps that free a region
  uint8_t q[kTiles][kTileBytes];      // tile 8 turns into P0 once both warpgroups hold it in registers
  uint8_t kv[2][kTiles][kTileBytes];  // buffer 0: even blocks (warpgroup 0's scores), buffer 1: odd blocks
  uint8_t p1[kTileBytes];
  float2 steps[2][kRows];  // of rows after a block in buffer 0 or 1: the running maximum, and the factor that it puts on what came before
  uint64_t full[2][kUnits];
  uint64_t empty[2][kRegions];
  uint64_t q_full, q_empty;
  uint64_t note_full[2];
  LinePosition at;
  SegmentWalk walk;    // past the last note
  Note note[2];        // of this segment and of the next
  PartPlace places[4]; // of the nth segment in its tile; stands until after the segment
  int precedes;        // whether what comes before the kernel still runs
  int known;           // whether the lengths are in seq_lens
  int32_t seq_lens[kKnownLengths];

  __device__ __forceinline__ static InOrder order(const MlaDecodeParams&, const Segment&, int) { return {}; }
};
constexpr int kSharedBytes = sizeof(SharedStorage) + 1024;  // room to align to the swizzle's period
static_assert(kSharedBytes <= 232448, "shared memory of one block");

}  // namespace flashmla::decode
