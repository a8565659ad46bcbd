// wgmma: D [64, n] (+)= A [64, 16] B [16, n], float32 accumulators. A from registers (rs) or shared memory (ss); B from shared
// memory, as rows of B^T (kmajor: QK) or rows of B (nmajor: PV).
#pragma once
#include "../../common/numeric.h"

namespace flashmla::ptx {

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory"); }
// Keeps the compiler from moving uses of accumulators across a wait.
template <int n>
__device__ __forceinline__ void pin(float (&d)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Matrix descriptor, 128-byte swizzle. kmajor: 8-row groups 1024 bytes apart. nmajor: 64-column tiles `lead` bytes apart.
__device__ __forceinline__ uint64_t descriptor(uint32_t address, uint32_t lead, uint32_t stride) {
  return uint64_t((address & 0x3ffff) >> 4) | (uint64_t(lead >> 4) << 16) | (uint64_t(stride >> 4) << 32) | (uint64_t(1) << 62);
}

// The instruction names each accumulator: d[0] .. d[15] for 32 columns, d[0] .. d[127] for 256.
#define WGMMA_D8(d, i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define WGMMA_D32(d, i) WGMMA_D8(d, i), WGMMA_D8(d, i + 8), WGMMA_D8(d, i + 16), WGMMA_D8(d, i + 24)
#define WGMMA_R16 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}"
#define WGMMA_R128 \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}"
#define WGMMA_BEGIN(shape, type, predicate) \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " predicate ", 0;\nwgmma.mma_async.sync.aligned." shape ".f32." type "." type " "

template <typename T>
struct Wgmma;

#define WGMMA_OF(Type, type)                                                                                              \
  template <>                                                                                                             \
  struct Wgmma<Type> {                                                                                                    \
    static __device__ __forceinline__ void qk_ss(float (&d)[16], uint64_t a, uint64_t b, int accumulate) {                \
      asm volatile(WGMMA_BEGIN("m64n32k16", type, "%18") WGMMA_R16 ", %16, %17, p, 1, 1, 0, 0;\n}\n"                      \
                   : WGMMA_D8(d, 0), WGMMA_D8(d, 8)                                                                       \
                   : "l"(a), "l"(b), "r"(accumulate));                                                                    \
    }                                                                                                                     \
    static __device__ __forceinline__ void qk_rs(float (&d)[16], const uint32_t (&a)[4], uint64_t b, int accumulate) {    \
      asm volatile(WGMMA_BEGIN("m64n32k16", type, "%21") WGMMA_R16 ", {%16, %17, %18, %19}, %20, p, 1, 1, 0;\n}\n"        \
                   : WGMMA_D8(d, 0), WGMMA_D8(d, 8)                                                                       \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));                                \
    }                                                                                                                     \
    static __device__ __forceinline__ void pv_ss(float (&d)[128], uint64_t a, uint64_t b, int accumulate) {               \
      asm volatile(WGMMA_BEGIN("m64n256k16", type, "%130") WGMMA_R128 ", %128, %129, p, 1, 1, 0, 1;\n}\n"                     \
                   : WGMMA_D32(d, 0), WGMMA_D32(d, 32), WGMMA_D32(d, 64), WGMMA_D32(d, 96)                                  \
                   : "l"(a), "l"(b), "r"(accumulate));                                                                    \
    }                                                                                                                     \
  };

WGMMA_OF(Bf16, "bf16")
WGMMA_OF(F16, "f16")

#undef WGMMA_OF
#undef WGMMA_BEGIN
#undef WGMMA_R128
#undef WGMMA_R16
#undef WGMMA_D32
#undef WGMMA_D8

}  // namespace flashmla::ptx
