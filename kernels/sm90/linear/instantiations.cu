#include "../../model/experts.h"
#include "kernel.h"

using namespace flashmla;

#define MLA_LINEAR(symbol, ...)                                                                                      \
  extern "C" __global__ void __launch_bounds__(384, 1) mla_##symbol(const __grid_constant__ MlaLinearParams p) {      \
    extern __shared__ uint8_t raw[];                                                                                  \
    linear::linear<linear::Config<__VA_ARGS__>>(p, raw);                                                              \
  }

MLA_LINEAR(linear_64x64, 64, 64, 8)
MLA_LINEAR(linear_64x128, 64, 128, 6)
MLA_LINEAR(linear_64x256, 64, 256, 4)
MLA_LINEAR(linear_128x256, 128, 256, 3)
MLA_LINEAR(gated_64x128, 64, 128, 6, true)
MLA_LINEAR(gated_64x256, 64, 256, 4, true)
MLA_LINEAR(gated_128x256, 128, 256, 3, true)

// Grid (tiles at most, ceil(columns / outputs)).
#define MLA_EXPERTS(symbol, ...)                                                                                      \
  extern "C" __global__ void __launch_bounds__(384, 1) mla_expert_##symbol(const __grid_constant__ MlaExpertParams p) { \
    extern __shared__ uint8_t raw[];                                                                                  \
    using C = linear::Config<__VA_ARGS__>;                                                                            \
    TileProduct tile;                                                                                                 \
    if (expert_tile(p, blockIdx.x, blockIdx.y, C::kOutputs, tile)) linear::multiply<C>(tile, raw);                    \
  }

MLA_EXPERTS(tiles_64x128, 64, 128, 6)
MLA_EXPERTS(tiles_64x256, 64, 256, 4)
MLA_EXPERTS(gated_64x128, 64, 128, 6, true)
MLA_EXPERTS(gated_64x256, 64, 256, 4, true)
