// Sizes of a product in tiles: 64 rows, or 128 by two consumer warpgroups, and 64 to 256 outputs, in steps of 64 columns of x and of the weights.
#pragma once
#include "../ptx/barrier.h"

namespace flashmla::linear {

constexpr int kStep = 64;
constexpr int kGroupRows = 64;

// Two consumer warpgroups have 64 rows each; where there are no more, they take steps in turns. A gated tile's columns are those of both weights.
template <int rows, int columns, int stages, bool gated = false>
struct Config {
  static constexpr bool kGated = gated;
  static constexpr int kRows = rows, kColumns = columns, kOutputs = gated ? columns / 2 : columns, kStages = stages;
  static constexpr int kTurns = rows == kGroupRows ? 2 : 1;
  static constexpr int kConsumers = 256, kThreads = kConsumers + 128;
  // Columns of one product of the tensor cores, and how many of those a warpgroup has: gate and up, if gated.
  static constexpr int kWidth = kOutputs < 128 ? kOutputs : 128, kProducts = kColumns / kWidth;
  static_assert(!gated || kProducts == 2);
  // 256 outputs leave a thread too few registers otherwise.
  static constexpr bool kShiftsRegisters = kColumns == 256;

  // Shared memory, in bytes from its first multiple of 1024: a ring of stages, each x [rows, 64] f32 and weights [outputs, 64] bf16.
  static constexpr int kXBytes = kRows * kStep * 4, kWeightBytes = kColumns * kStep * 2, kStageBytes = kXBytes + kWeightBytes;
  static constexpr int kBarriers = kStages * kStageBytes;       // full and empty of each stage
  static constexpr int kRowPointers = kBarriers + 16 * kStages;  // [rows] where each row of x begins
  static constexpr int kSharedBytes = 1024 + kRowPointers + 8 * kRows;

  // Sums on their way to other threads take the ring's place, [turns, rows, outputs] f32; the padding keeps a warp's rows in different banks.
  static constexpr int kSumStride = kColumns * 4 + 16, kPartBytes = kRows * kSumStride;
  static_assert(kTurns * kPartBytes <= kBarriers);
};

}  // namespace flashmla::linear
