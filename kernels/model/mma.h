// One product of the tensor cores: d [16, 8] += a [16, 16] b [16, 8] in bf16 with f32 sums (mma.sync, Ampere and later).
//
// Lane (g = lane / 4, t = lane % 4) holds of a: rows g and g + 8, columns 2t, 2t + 1 and those + 8; of b: the same rows of
// column g; of d: rows g and g + 8, columns 2t and 2t + 1.
#pragma once
#include <stdint.h>

namespace flashmla {

#ifndef FLASHMLA_ON_HOST  // there test/block.h has them
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four matrices of 8 x 8 from shared memory, a lane's row of 16 bytes each: lanes 8 i .. 8 i + 7 have the rows of matrix i, and get two values of its
// row lane / 4 in d[i].
__device__ __forceinline__ void load_matrices(uint32_t (&d)[4], const uint16_t* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}
#endif

}  // namespace flashmla
