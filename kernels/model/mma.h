// One product of the tensor cores: d [16, 8] += a [16, 16] b [16, 8] in bf16 with f32 sums (mma.sync, Ampere and later).
//
// Lane (g = lane / 4, t = lane % 4) holds of a: rows g and g + 8, columns 2t, 2t + 1 and those + 8; of b: the same rows of
// column g; of d: rows g and g + 8, columns 2t and 2t + 1.
#pragma once
#include <stdint.h>

namespace flashmla {

#ifndef FLASHMLA_ON_HOST  // there test/block.h has it
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

}  // namespace flashmla
