// The one type of CUDA's header that the host needs.
#pragma once
struct float2 {
  float x, y;
};
