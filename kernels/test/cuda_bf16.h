// What the kernels use of CUDA's header.
#pragma once
struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) { return flashmla::Bf16::value(x.bits); }
