// Absorbed attention over a paged cache of any format, width and page size, in f32: plain multiply-adds with an online softmax.
//
// A block of 256 threads takes a tile of 16 rows (query, head), a part of its sequence's tokens and 512 output columns.
// 1. A tile may hold queries of several sequences: each sequence's rows are walked on their own, the others masked.
// 2. Tokens come 16 at a time, decoded to f32 in shared memory; tokens past the last visible one are zeros and never read.
// 3. Scores: each warp takes an eighth of the width and 2 x 4 scores a lane; the eighths meet in shared memory.
// 4. Softmax: 16 threads a row keep its maximum and sum. Values: a thread adds up two columns of all 16 rows.
// 5. A whole sequence's result is written; parts go to the partial buffers, for attend_merge.
#pragma once
#include "latents.h"

namespace flashmla {

constexpr int kAttendRows = 16, kAttendTokens = 16, kAttendColumns = 512;

// Floats between two rows in shared memory: 16-byte aligned, an odd number of 16-byte words against bank conflicts.
__device__ __forceinline__ int attend_stride(int width) { return (((width + 3) >> 2) | 1) * 4; }

// The sequence of a query row: the last one whose queries start at or before it.
__device__ __forceinline__ int sequence_of(const int32_t* query_start, int b, int query) {
  int low = 0, high = b - 1;
  while (low < high) {
    const int middle = (low + high + 1) >> 1;
    if (query_start[middle] <= query) low = middle;
    else high = middle - 1;
  }
  return low;
}

struct AttendShared {
  float partial[8][kAttendRows][kAttendTokens + 1];
  float p[kAttendTokens][kAttendRows];
  float factor[kAttendRows];
};

// One sequence's queries [first, end) of the tile that begins with query `base`.
__device__ __forceinline__ void attend_sequence(const MlaAttendParams& p, AttendShared& sh, float* q, float* kv, int base, int first, int end,
                                                int sequence, int head0, int heads) {
  const CacheLayout layout = {p.format, p.page_size, p.kv_lora_rank, p.rope_dim};
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31, width = layout.width(), stride = attend_stride(width);
  const int start = p.query_start[sequence], seq_len = p.seq_lens[sequence], hidden = seq_len - (p.query_start[sequence + 1] - start) + 1 - start;
  const int32_t* blocks = p.block_table + sequence * p.block_table_stride;
  const int last = min(max(hidden + end - 1, 0), seq_len);  // tokens that the last query sees
  const int steps = (last + kAttendTokens - 1) / kAttendTokens, share = (steps + p.splits - 1) / p.splits;
  const int step0 = int(blockIdx.y) * share, step1 = min(step0 + share, steps);

  const int row = thread >> 4, token = thread & 15;  // of the softmax
  const int query = base + row / heads;
  const bool mine = row / heads < p.tile_queries && query >= first && query < end && head0 + row % heads < p.h;
  const int limit = mine ? min(max(hidden + query, 0), seq_len) : 0;
  float top = -INFINITY, sum = 0.f;
  float acc[2][kAttendRows] = {};
  const int column = int(blockIdx.z) * kAttendColumns + thread;

  for (int step = step0; step < step1; ++step) {
    const int token0 = step * kAttendTokens;
    for (int i = warp; i < kAttendTokens; i += 8) {
      if (token0 + i < last) load_token(layout, p.cache, p.num_blocks, blocks, token0 + i, kv + i * stride, p.vector != 0);
      else for (int c = lane; c < width; c += 32) kv[i * stride + c] = 0.f;
    }
    __syncthreads();
    {
      const int a = lane >> 2, b = lane & 3;
      float s[2][4] = {};
      for (int k = warp * 4; k < width; k += 32) {
        const float4 x0 = *reinterpret_cast<const float4*>(q + a * stride + k), x1 = *reinterpret_cast<const float4*>(q + (a + 8) * stride + k);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float4 y = *reinterpret_cast<const float4*>(kv + (b + 4 * j) * stride + k);
          s[0][j] = fmaf(x0.x, y.x, fmaf(x0.y, y.y, fmaf(x0.z, y.z, fmaf(x0.w, y.w, s[0][j]))));
          s[1][j] = fmaf(x1.x, y.x, fmaf(x1.y, y.y, fmaf(x1.z, y.z, fmaf(x1.w, y.w, s[1][j]))));
        }
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sh.partial[warp][a][b + 4 * j] = s[0][j];
        sh.partial[warp][a + 8][b + 4 * j] = s[1][j];
      }
    }
    __syncthreads();
    float score = 0.f;
#pragma unroll
    for (int w = 0; w < 8; ++w) score += sh.partial[w][row][token];
    score = token0 + token < limit ? score * p.scale : -INFINITY;
    float highest = fmaxf(top, score);
#pragma unroll
    for (int d = 8; d > 0; d >>= 1) highest = fmaxf(highest, __shfl_xor_sync(kWarp, highest, d));
    const float reference = highest == -INFINITY ? 0.f : highest;
    const float power = expf(score - reference), factor = expf(top - reference);
    float powers = power;
#pragma unroll
    for (int d = 8; d > 0; d >>= 1) powers += __shfl_xor_sync(kWarp, powers, d);
    top = highest;
    sum = fmaf(sum, factor, powers);
    sh.p[token][row] = power;
    if (token == 0) sh.factor[row] = factor;
    __syncthreads();
    float4 scale[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) scale[r] = *reinterpret_cast<const float4*>(&sh.factor[4 * r]);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        acc[j][4 * r] *= scale[r].x, acc[j][4 * r + 1] *= scale[r].y, acc[j][4 * r + 2] *= scale[r].z, acc[j][4 * r + 3] *= scale[r].w;
      }
    }
#pragma unroll 4
    for (int i = 0; i < kAttendTokens; ++i) {
      const float v0 = column < p.kv_lora_rank ? kv[i * stride + column] : 0.f;
      const float v1 = column + 256 < p.kv_lora_rank ? kv[i * stride + column + 256] : 0.f;
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const float4 w = *reinterpret_cast<const float4*>(&sh.p[i][4 * r]);
        acc[0][4 * r] = fmaf(w.x, v0, acc[0][4 * r]), acc[0][4 * r + 1] = fmaf(w.y, v0, acc[0][4 * r + 1]);
        acc[0][4 * r + 2] = fmaf(w.z, v0, acc[0][4 * r + 2]), acc[0][4 * r + 3] = fmaf(w.w, v0, acc[0][4 * r + 3]);
        acc[1][4 * r] = fmaf(w.x, v1, acc[1][4 * r]), acc[1][4 * r + 1] = fmaf(w.y, v1, acc[1][4 * r + 1]);
        acc[1][4 * r + 2] = fmaf(w.z, v1, acc[1][4 * r + 2]), acc[1][4 * r + 3] = fmaf(w.w, v1, acc[1][4 * r + 3]);
      }
    }
    __syncthreads();
  }

  // Row r of the tile goes to row (query, head) of out, or of this part's.
  const int64_t rows = int64_t(p.t) * p.h, part = p.splits > 1 ? int64_t(blockIdx.y) * rows : 0;
  float* out = p.splits > 1 ? p.partial_out : p.out;
  float* lse = p.splits > 1 ? p.partial_lse : p.lse;
  if (token == 0) {
    sh.factor[row] = sum > 0.f ? 1.f / sum : 0.f;
    if (mine && blockIdx.z == 0) lse[part + int64_t(query) * p.h + head0 + row % heads] = sum > 0.f ? top + logf(sum) : -INFINITY;
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kAttendRows; ++r) {
    const int at = base + r / heads, head = head0 + r % heads;
    if (r / heads >= p.tile_queries || at < first || at >= end || head >= p.h) continue;
    float* target = out + (part + int64_t(at) * p.h + head) * p.kv_lora_rank;
    if (column < p.kv_lora_rank) target[column] = acc[0][r] * sh.factor[r];
    if (column + 256 < p.kv_lora_rank && thread + 256 < kAttendColumns) target[column + 256] = acc[1][r] * sh.factor[r];
  }
  __syncthreads();
}

// Grid (tiles, splits, ceil(kv_lora_rank / 512)), 256 threads, 2 * 16 * attend_stride(width) floats of dynamic shared memory.
__device__ __forceinline__ void attend(const MlaAttendParams& p) {
  extern __shared__ float4 dynamic_shared[];
  __shared__ __align__(16) AttendShared sh;
  const int width = p.kv_lora_rank + p.rope_dim, stride = attend_stride(width), thread = threadIdx.x;
  float* q = reinterpret_cast<float*>(dynamic_shared);
  float* kv = q + kAttendRows * stride;
  const int heads = min(p.h, kAttendRows), groups = (p.h + kAttendRows - 1) / kAttendRows;
  const int base = int(blockIdx.x) / groups * p.tile_queries, head0 = int(blockIdx.x) % groups * kAttendRows;
  const int end = min(min(base + p.tile_queries, p.t), p.query_start[p.b]);
  if (base >= end) return;
  for (int i = thread; i < kAttendRows * stride; i += 256) {
    const int r = i / stride, c = i - r * stride, query = base + r / heads, head = head0 + r % heads;
    const bool exists = r / heads < p.tile_queries && query < end && head < p.h && c < width;
    q[i] = exists ? p.q[(int64_t(query) * p.h + head) * width + c] : 0.f;
    kv[i] = 0.f;
  }
  __syncthreads();
  for (int first = base; first < end;) {
    const int sequence = sequence_of(p.query_start, p.b, first), next = min(end, p.query_start[sequence + 1]);
    attend_sequence(p, sh, q, kv, base, first, next, sequence, head0, heads);
    first = next;
  }
}

// out = Σ_i e^(lse_i - lse) out_i, in the order of the parts. A block of 128 threads a row (query, head).
__device__ __forceinline__ void attend_merge(const MlaAttendParams& p) {
  const int64_t row = blockIdx.x, rows = int64_t(p.t) * p.h;
  if (row >= int64_t(p.query_start[p.b]) * p.h) return;
  float top = -INFINITY;
  for (int i = 0; i < p.splits; ++i) top = fmaxf(top, p.partial_lse[i * rows + row]);
  float sum = 0.f;
  for (int i = 0; i < p.splits; ++i) sum += top == -INFINITY ? 0.f : expf(p.partial_lse[i * rows + row] - top);
  for (int c = threadIdx.x; c < p.kv_lora_rank; c += blockDim.x) {
    float total = 0.f;
    for (int i = 0; i < p.splits; ++i) {
      const float lse = p.partial_lse[i * rows + row];
      if (lse > -INFINITY) total = fmaf(expf(lse - top), p.partial_out[(i * rows + row) * p.kv_lora_rank + c], total);
    }
    p.out[row * p.kv_lora_rank + c] = sum > 0.f ? total / sum : 0.f;
  }
  if (threadIdx.x == 0) p.lse[row] = sum > 0.f ? top + logf(sum) : -INFINITY;
}

}  // namespace flashmla
