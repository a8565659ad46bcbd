// Cached rows of any format into shared or global memory as f32, one warp a row.
#pragma once
#include "cache.h"
#include "dot.h"

namespace flashmla {

// `vector`: the row starts at a multiple of 16 bytes (f32, bf16); fp8 rows start at multiples of 4 always. `target` is 16-byte
// aligned where `vector` holds or the format is fp8.
__device__ __forceinline__ void load_row(const CacheLayout& layout, const char* row, const char* scales, float* target, bool vector) {
  const int lane = threadIdx.x & 31, width = layout.width();
  if (layout.format == FLASHMLA_ROW_F32 && vector) {
    for (int c = lane * 4; c < width; c += 128) *reinterpret_cast<float4*>(target + c) = *reinterpret_cast<const float4*>(row + c * 4);
  } else if (layout.format == FLASHMLA_ROW_BF16 && vector) {
    for (int c = lane * 8; c < width; c += 256) {
      float v[8];
      unpack(*reinterpret_cast<const uint4*>(row + c * 2), v);
      *reinterpret_cast<float4*>(target + c) = make_float4(v[0], v[1], v[2], v[3]);
      *reinterpret_cast<float4*>(target + c + 4) = make_float4(v[4], v[5], v[6], v[7]);
    }
  } else if (layout.format == FLASHMLA_ROW_FP8_656 || layout.format == FLASHMLA_ROW_FP8_584) {
    const bool v32 = layout.format == FLASHMLA_ROW_FP8_656;
    for (int c = lane * 4; c < layout.kv_lora_rank; c += 128) {
      const uint32_t word = *reinterpret_cast<const uint32_t*>(row + c);
      const float scale = v32 ? reinterpret_cast<const float*>(row + 512)[c >> 7] : e8m0_value(uint8_t(scales[c >> 6]));
      *reinterpret_cast<float4*>(target + c) = make_float4(e4m3_value(word & 255u) * scale, e4m3_value(word >> 8 & 255u) * scale,
                                                           e4m3_value(word >> 16 & 255u) * scale, e4m3_value(word >> 24) * scale);
    }
    for (int c = layout.kv_lora_rank + lane; c < width; c += 32) target[c] = row_value(layout, row, scales, c);
  } else {
    for (int c = lane; c < width; c += 32) target[c] = row_value(layout, row, scales, c);
  }
}

// Token `position` of a sequence with that row of the block table; NaN when its block is none of the cache's.
__device__ __forceinline__ void load_token(const CacheLayout& layout, const void* cache, int64_t num_blocks, const int32_t* blocks, int position,
                                           float* target, bool vector) {
  const int page = position / layout.page_size, offset = position - page * layout.page_size;
  const int64_t block = blocks[page];
  const char* base = static_cast<const char*>(cache);
  if (block >= 0 && block < num_blocks) {
    load_row(layout, base + layout.row_start(block, offset), base + layout.scales_start(block, offset), target, vector);
  } else {
    for (int c = threadIdx.x & 31; c < layout.width(); c += 32) target[c] = nan_value();
  }
}

}  // namespace flashmla
