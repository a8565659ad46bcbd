// Rows of a paged cache in its four formats: where they lie, how they are written and read.
//
// f32 and bf16: rows of any width, one after the other. fp8-656: 512 e4m3, 4 f32 scales, 64 bf16. fp8-584: a page has its token
// rows first (448 e4m3, 64 bf16), then a row of 8 bytes for each token: 7 e8m0 scales and a zero.
#pragma once
#include "bits.h"
#include "rows.h"

namespace flashmla {

struct CacheLayout {
  int32_t format, page_size, kv_lora_rank, rope_dim;

  __device__ __forceinline__ int width() const { return kv_lora_rank + rope_dim; }
  __device__ __forceinline__ int64_t token_bytes() const {
    return format == FLASHMLA_ROW_F32 ? width() * 4 : format == FLASHMLA_ROW_BF16 ? width() * 2 : format == FLASHMLA_ROW_FP8_656 ? 656 : 584;
  }
  // Bytes of a token that lie together.
  __device__ __forceinline__ int64_t row_bytes() const { return format == FLASHMLA_ROW_FP8_584 ? 576 : token_bytes(); }
  __device__ __forceinline__ int64_t page_start(int64_t block) const { return block * page_size * token_bytes(); }
  __device__ __forceinline__ int64_t row_start(int64_t block, int offset) const { return page_start(block) + offset * row_bytes(); }
  // The 8 scale bytes of a token of fp8-584.
  __device__ __forceinline__ int64_t scales_start(int64_t block, int offset) const {
    return page_start(block) + int64_t(page_size) * 576 + offset * 8;
  }
};

// Value `c` of a row at `row`, its scales at `scales` (fp8-584). Scalar: any alignment that the formats give.
__device__ __forceinline__ float row_value(const CacheLayout& layout, const char* row, const char* scales, int c) {
  switch (layout.format) {
    case FLASHMLA_ROW_F32:
      return reinterpret_cast<const float*>(row)[c];
    case FLASHMLA_ROW_BF16:
      return bf16_value(reinterpret_cast<const uint16_t*>(row)[c]);
    case FLASHMLA_ROW_FP8_656:
      if (c >= 512) return bf16_value(reinterpret_cast<const uint16_t*>(row + 528)[c - 512]);
      return e4m3_value(uint8_t(row[c])) * reinterpret_cast<const float*>(row + 512)[c >> 7];
    default:
      if (c >= 448) return bf16_value(reinterpret_cast<const uint16_t*>(row + 448)[c - 448]);
      return e4m3_value(uint8_t(row[c])) * e8m0_value(uint8_t(scales[c >> 6]));
  }
}

// Writes 128 or 64 values as e4m3 by one warp and returns their scale's e8m0 byte. NaN has no say in the scale.
__device__ __forceinline__ uint32_t encode_tile(const float* source, int n, char* target) {
  const int lane = threadIdx.x & 31;
  float max = 0.f;
  for (int i = lane; i < n; i += 32) {
    const float magnitude = fabsf(source[i]);
    if (magnitude > max) max = magnitude;
  }
  const uint32_t scale = e8m0_scale(warp_max(max));
  const float inverse = e8m0_value(254u - scale);  // 2^(127 - scale)
  for (int i = lane; i < n; i += 32) target[i] = char(e4m3_bits(source[i] * inverse));
  return scale;
}

// Writes a row to a slot, by a block; to none where the cache has no such slot.
__device__ __forceinline__ void write_row(const CacheLayout& layout, const float* source, void* cache, int64_t num_blocks, int64_t slot) {
  if (slot < 0 || slot >= num_blocks * layout.page_size) return;
  const int64_t block = slot / layout.page_size;
  const int offset = int(slot - block * layout.page_size), width = layout.width(), format = layout.format;
  char* row = static_cast<char*>(cache) + layout.row_start(block, offset);
  const int thread = threadIdx.x, threads = blockDim.x, warp = thread >> 5, warps = threads >> 5, lane = thread & 31;
  if (format == FLASHMLA_ROW_F32) {
    for (int c = thread; c < width; c += threads) reinterpret_cast<float*>(row)[c] = source[c];
    return;
  }
  const bool fp8 = format != FLASHMLA_ROW_BF16, v32 = format == FLASHMLA_ROW_FP8_656;
  const int first = fp8 ? layout.kv_lora_rank : 0;  // where the bf16 values begin
  uint16_t* words = reinterpret_cast<uint16_t*>(row + (v32 ? 528 : first));
  for (int c = first + thread; c < width; c += threads) words[c - first] = uint16_t(bf16_bits(source[c]));
  if (!fp8) return;
  const int tile_width = v32 ? 128 : 64, tiles = v32 ? 4 : 7;
  char* scales = static_cast<char*>(cache) + layout.scales_start(block, offset);
  for (int tile = warp; tile < tiles; tile += warps) {
    const uint32_t scale = encode_tile(source + tile * tile_width, tile_width, row + tile * tile_width);
    if (lane > 0) continue;
    if (v32) reinterpret_cast<uint32_t*>(row + 512)[tile] = scale << 23;  // its float32
    else scales[tile] = char(scale);
  }
  if (!v32 && thread == 0) scales[7] = 0;
}

// A block a row.
__device__ __forceinline__ void append_rows(const MlaAppendRowsParams& p) {
  const CacheLayout layout = {p.format, p.page_size, p.kv_lora_rank, p.rope_dim};
  write_row(layout, p.latent + blockIdx.x * int64_t(layout.width()), p.cache, p.num_blocks, p.slots[blockIdx.x]);
}

// A block a row: its latent part is normalized, its rotary part turned, in place, and the row written.
__device__ __forceinline__ void append_latents(const MlaAppendLatentsParams& p) {
  __shared__ float sums[32];
  const CacheLayout layout = {p.format, p.page_size, p.kv_lora_rank, p.rope_dim};
  float* row = p.latent + blockIdx.x * int64_t(layout.width());
  const int pairs = p.rope_dim / 2;
  for (int j = threadIdx.x; j < pairs; j += blockDim.x) {
    float* rotary = row + p.kv_lora_rank;
    turn(rotary, rotary, p.table, p.positions[blockIdx.x], p.max_positions, j, pairs, p.interleaved != 0);
  }
  norm_row(row, p.norm, row, p.kv_lora_rank, p.eps, sums);
  __syncthreads();
  write_row(layout, row, p.cache, p.num_blocks, p.slots[blockIdx.x]);
}

}  // namespace flashmla
