// The four variants of FlashAttention-3 that fa3.cu chooses from.
#include "flash_fwd_launch_template.h"

#define INSTANCE(split, gather) \
  template void run_mha_fwd_<90, cutlass::bfloat16_t, 64, 512, split, gather, false, true>(Flash_fwd_params &, cudaStream_t)

INSTANCE(true, false);
INSTANCE(true, true);
INSTANCE(false, false);
INSTANCE(false, true);
