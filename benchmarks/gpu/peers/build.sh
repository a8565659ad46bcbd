#!/usr/bin/env bash
# Builds the two peers outside the project, without PyTorch, from checkouts that you bring:
#   build.sh OUT FLASHMLA FLASHMLA_CUTLASS FLASH_ATTENTION FLASH_ATTENTION_CUTLASS
# FlashMLA 9241ae3 (cutlass 147f567), flash-attention 0251105a (cutlass 7127592). Needs nvcc ≥ 12.8; about five minutes on one core.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1 mla=$2 mla_cutlass=$3 fa=$4/hopper fa_cutlass=$5
flags=(-O3 -gencode arch=compute_90a,code=sm_90a -Xcompiler -fPIC -Xcompiler -w -w -DNDEBUG -I"$here"
  --expt-relaxed-constexpr --expt-extended-lambda --use_fast_math)
mkdir -p "$out"

nvcc -std=c++20 "${flags[@]}" -shared -o "$out/libflashmla.so" "$here/flashmla.cu" \
  -I"$mla/csrc" -I"$mla/csrc/sm90" -I"$mla/csrc/kerutils/include" -I"$mla_cutlass/include" \
  "$mla/csrc/sm90/decode/dense/instantiations/bf16.cu" "$mla/csrc/smxx/decode/combine/combine.cu" \
  "$mla/csrc/smxx/decode/get_decoding_sched_meta/get_decoding_sched_meta.cu"

nvcc -std=c++17 "${flags[@]}" -shared -o "$out/libfa3.so" "$here/fa3.cu" "$here/fa3_instances.cu" \
  -I"$fa" -I"$fa_cutlass/include" -DCUTLASS_ENABLE_GDC_FOR_SM90 \
  -DFLASHATTENTION_DISABLE_LOCAL -DFLASHATTENTION_DISABLE_SOFTCAP -DFLASHATTENTION_DISABLE_APPENDKV -DFLASHATTENTION_DISABLE_CLUSTER \
  "$fa/flash_prepare_scheduler.cu" "$fa/flash_fwd_combine.cu"
