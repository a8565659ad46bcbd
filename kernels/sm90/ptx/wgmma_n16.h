// wgmma: D [64, 16] (+)= A [64, 16] B [16, 16], float32 accumulators, both operands from shared memory. B as rows of B^T; A as its rows,
// or transposed, as rows of A^T (64 columns of a tile, which is then as wide as the product is high).
#pragma once
#include <type_traits>

#include "wgmma.h"

namespace flashmla::ptx {

#define FLASHMLA_WGMMA_N16(type)                                                                                                   \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"                                                                        \
               "wgmma.mma_async.sync.aligned.m64n16k16.f32." type "." type " {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, p, 1, 1, "  \
               "%11, 0;\n}\n"                                                                                                      \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])                    \
               : "l"(a), "l"(b), "r"(accumulate), "n"(kTransposed))

template <typename T, int kTransposed>
__device__ __forceinline__ void wgmma_n16(float (&d)[8], uint64_t a, uint64_t b, int accumulate) {
  if constexpr (std::is_same_v<T, Bf16>) {
    FLASHMLA_WGMMA_N16("bf16");
  } else {
    FLASHMLA_WGMMA_N16("f16");
  }
}
#undef FLASHMLA_WGMMA_N16

}  // namespace flashmla::ptx
