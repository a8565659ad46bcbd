#include "../../model/experts.h"
#include "kernel.h"

using namespace flashmla;

#define MLA_LINEAR(rows, columns, stages)                                                                                                \
  extern "C" __global__ void __launch_bounds__(384, 1) mla_linear_##rows##x##columns(const __grid_constant__ MlaLinearParams p) {        \
    extern __shared__ uint8_t raw[];                                                                                                      \
    linear::linear<linear::Config<rows, columns, stages>>(p, raw);                                                                        \
  }

MLA_LINEAR(64, 64, 8)
MLA_LINEAR(64, 128, 6)
MLA_LINEAR(64, 256, 4)
MLA_LINEAR(128, 256, 3)

// Grid (tiles at most, ceil(columns / outputs)).
#define MLA_EXPERTS(columns, stages)                                                                                                      \
  extern "C" __global__ void __launch_bounds__(384, 1) mla_expert_tiles_64x##columns(const __grid_constant__ MlaExpertParams p) {         \
    extern __shared__ uint8_t raw[];                                                                                                      \
    using C = linear::Config<64, columns, stages>;                                                                                        \
    TileProduct tile;                                                                                                                     \
    if (expert_tile(p, blockIdx.x, blockIdx.y, C::kColumns, tile)) linear::multiply<C>(tile, raw);                                        \
  }

MLA_EXPERTS(128, 6)
MLA_EXPERTS(256, 4)
