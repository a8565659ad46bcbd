// What the kernels use of CUDA's header.
#pragma once
struct __half2 {
  uint16_t x, y;
};
inline float2 __half22float2(__half2 v) { return make_float2(flashmla::F16::value(v.x), flashmla::F16::value(v.y)); }
