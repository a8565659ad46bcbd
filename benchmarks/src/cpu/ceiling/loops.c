// What the machine's vector units and memory give a WebAssembly loop that does nothing else. Built by:
// clang --target=wasm32 -O3 -ffreestanding -nostdlib -msimd128 -Wl,--no-entry,--import-memory,--strip-all loops.c
//   -o loops.simd.wasm
// and, fused as the kernels are where the runtime has relaxed SIMD, with -mrelaxed-simd to loops.relaxed.wasm.
#include <wasm_simd128.h>

#ifdef __wasm_relaxed_simd__
#define MADD(a, b, c) wasm_f32x4_relaxed_madd(a, b, c)
#else
#define MADD(a, b, c) wasm_f32x4_add(wasm_f32x4_mul(a, b), c)
#endif

// Twelve chains of multiply-adds: 12 · 4 multiply-adds a round.
__attribute__((export_name("multiplyAdds"))) float multiplyAdds(int rounds, float factor) {
  v128_t a = wasm_f32x4_splat(factor), s[12];
#pragma clang loop unroll(full)
  for (int k = 0; k < 12; k++) s[k] = wasm_f32x4_splat(k);
  for (int i = 0; i < rounds; i++) {
#pragma clang loop unroll(full)
    for (int k = 0; k < 12; k++) s[k] = MADD(s[k], a, a);
  }
#pragma clang loop unroll(full)
  for (int k = 1; k < 12; k++) s[0] = wasm_f32x4_add(s[0], s[k]);
  return wasm_f32x4_extract_lane(s[0], 0) + wasm_f32x4_extract_lane(s[0], 1);
}

// Reads `bytes` (a multiple of 128) once.
__attribute__((export_name("stream"))) float stream(const char* from, unsigned bytes) {
  v128_t s[8];
#pragma clang loop unroll(full)
  for (int k = 0; k < 8; k++) s[k] = wasm_f32x4_const_splat(0);
  for (const char* p = from; p != from + bytes; p += 128) {
#pragma clang loop unroll(full)
    for (int k = 0; k < 8; k++) s[k] = wasm_f32x4_add(s[k], wasm_v128_load(p + 16 * k));
  }
#pragma clang loop unroll(full)
  for (int k = 1; k < 8; k++) s[0] = wasm_f32x4_add(s[0], s[k]);
  return wasm_f32x4_extract_lane(s[0], 0);
}
