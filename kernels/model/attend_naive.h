// Naive attention: full keys and values, rebuilt by kv_b for a run of a sequence's tokens at a time.
#pragma once
#include "latents.h"

namespace flashmla {

// Tokens [first, first + count) as f32 rows. A warp a token; grid ceil(count / 8), 256 threads.
__device__ __forceinline__ void gather_latents(const MlaNaiveParams& p) {
  const int i = int(blockIdx.x) * 8 + (threadIdx.x >> 5);
  if (i >= p.count) return;
  const CacheLayout layout = {p.format, p.page_size, p.kv_lora_rank, p.rope_dim};
  const int64_t width = layout.width();
  // Rows are written with 16-byte stores in the fp8 formats only, whose widths are multiples of 4.
  load_token(layout, p.cache, p.num_blocks, p.blocks, p.first + i, p.latents + i * width, false);
}

// One run for one query and head. Grid queries * h, 128 threads. Between runs out holds sums that the state's maximum scales.
__device__ __forceinline__ void attend_naive(const MlaNaiveParams& p) {
  __shared__ float scores[128];
  __shared__ float sums[32];
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31;
  const int i = int(blockIdx.x) / p.h, head = int(blockIdx.x) % p.h;
  const int64_t row = (p.first_query + i) * p.h + head;
  const int width = p.nope + p.rope_dim, latent = p.kv_lora_rank + p.rope_dim, full = p.nope + p.v;
  const int visible = min(max(p.seq_len - p.queries + i + 1, 0), p.seq_len), end = min(visible - p.first, p.count);
  const float* q = p.q + row * width;
  float* out = p.out + row * p.v;
  float top = p.first == 0 ? -INFINITY : p.state[2 * row], sum = p.first == 0 ? 0.f : p.state[2 * row + 1];
  if (p.first == 0) {
    for (int c = thread; c < p.v; c += 128) out[c] = 0.f;
  }
  for (int begin = 0; begin < end; begin += 128) {
    const int n = min(128, end - begin);
    __syncthreads();
    for (int j = warp; j < n; j += 4) {
      const float* key = p.expanded + (int64_t(begin + j) * p.h + head) * full;
      const float* rope = p.latents + int64_t(begin + j) * latent + p.kv_lora_rank;
      float score = 0.f;
      for (int c = lane; c < p.nope; c += 32) score = fmaf(q[c], key[c], score);
      for (int c = lane; c < p.rope_dim; c += 32) score = fmaf(q[p.nope + c], rope[c], score);
      score = warp_sum(score);
      if (lane == 0) scores[j] = score * p.scale;
    }
    __syncthreads();
    float highest = top;
    for (int j = 0; j < n; ++j) highest = fmaxf(highest, scores[j]);
    const float factor = expf(top - highest);
    const float power = thread < n ? expf(scores[thread] - highest) : 0.f;
    __syncthreads();
    if (thread < n) scores[thread] = power;
    sum = fmaf(sum, factor, block_sum(power, sums));  // its barrier also publishes the powers
    top = highest;
    for (int c = thread; c < p.v; c += 128) {
      float total = out[c] * factor;
      for (int j = 0; j < n; ++j) total = fmaf(scores[j], p.expanded[(int64_t(begin + j) * p.h + head) * full + p.nope + c], total);
      out[c] = total;
    }
  }
  if (p.first + p.count < p.seq_len) {
    if (thread == 0) {
      p.state[2 * row] = top;
      p.state[2 * row + 1] = sum;
    }
    return;
  }
  for (int c = thread; c < p.v; c += 128) out[c] = sum > 0.f ? out[c] / sum : 0.f;
}

}  // namespace flashmla
