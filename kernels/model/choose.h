// Choices: argmax of a row of logits, experts of a token.
#pragma once
#include "bits.h"
#include "reduce.h"

namespace flashmla {

// True when (v, i) comes before (w, j): larger first, the lower index on a tie, NaN after every number.
template <typename T>
__device__ __forceinline__ bool before(T v, int i, T w, int j) {
  const bool v_nan = !(v == v), w_nan = !(w == w);
  if (v_nan || w_nan) return v_nan == w_nan ? i < j : w_nan;
  return v > w || (v == w && i < j);
}

constexpr int kNone = 0x7fffffff;

// The best (value, index) of a warp; every lane gets the index. Index kNone stands for no candidate.
template <typename T>
__device__ __forceinline__ int warp_best(T value, int index) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) {
    const T other = __shfl_xor_sync(kWarp, value, d);
    const int at = __shfl_xor_sync(kWarp, index, d);
    if (at != kNone && (index == kNone || before(other, at, value, index))) {
      value = other;
      index = at;
    }
  }
  return index;
}

// A block a row: each thread walks its columns, then each warp, then the first warp.
__device__ __forceinline__ void argmax(const MlaArgmaxParams& p) {
  __shared__ int winners[32];
  const float* logits = p.logits + blockIdx.x * p.vocab;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  int index = kNone;
  float value = 0.f;
  for (int64_t c = threadIdx.x; c < p.vocab; c += blockDim.x) {
    const float v = logits[c];
    if (index == kNone || before(v, int(c), value, index)) {
      value = v;
      index = int(c);
    }
  }
  const int best = warp_best(value, index);
  if (lane == 0) winners[warp] = best;
  __syncthreads();
  if (warp > 0) return;
  const int candidate = lane < int(blockDim.x >> 5) ? winners[lane] : kNone;
  const int winner = warp_best(candidate == kNone ? 0.f : logits[candidate], candidate);
  if (lane == 0) p.ids[blockIdx.x] = winner;
}

constexpr int kMaxExperts = 1024;

// The best free entry of values [0, n), marked as taken.
__device__ __forceinline__ int take_best(const double* values, uint8_t* state, int n) {
  const int lane = threadIdx.x;
  int index = kNone;
  double value = 0.;
  for (int e = lane; e < n; e += 32) {
    if (state[e] == 0 && (index == kNone || before(values[e], e, value, index))) {
      value = values[e];
      index = e;
    }
  }
  const int best = warp_best(value, index);
  __syncwarp();
  if (lane == 0 && best != kNone) state[best] = 1;
  __syncwarp();
  return best;
}

// A warp a token, scores in double as the reference has them.
//
// 1. Scores by sigmoid or softmax; the bias steers the choice only.
// 2. Groups rank by their best expert, or by the sum of their two best (DeepSeek-V2 and V3); experts of the others are closed.
// 3. The best free expert, top_k times; weights are the scores, normalized where asked for.
__device__ __forceinline__ void route(const MlaRouteParams& p) {
  __shared__ double scores[kMaxExperts], ranks[kMaxExperts], groups[kMaxExperts];
  __shared__ uint8_t state[kMaxExperts], group_state[kMaxExperts];
  __shared__ int chosen[kMaxExperts];
  const int lane = threadIdx.x, experts = p.experts;
  const float* logits = p.logits + blockIdx.x * int64_t(experts);
  float top = -INFINITY;
  for (int e = lane; e < experts; e += 32) top = fmaxf(top, logits[e]);
  top = warp_max(top);
  double total = 0.;
  for (int e = lane; e < experts; e += 32) {
    const double power = p.sigmoid ? 1. / (1. + exp(-double(logits[e]))) : exp(double(logits[e]) - double(top));
    scores[e] = power;
    total += power;
  }
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) total += __shfl_xor_sync(kWarp, total, d);
  for (int e = lane; e < experts; e += 32) {
    if (!p.sigmoid) scores[e] /= total;
    ranks[e] = scores[e] + (p.bias != nullptr ? double(p.bias[e]) : 0.);
    state[e] = 0;
  }
  __syncwarp();
  if (p.num_groups > 1) {
    const int size = experts / p.num_groups;
    for (int g = lane; g < p.num_groups; g += 32) {
      double first = -INFINITY, second = -INFINITY;
      for (int e = g * size; e < (g + 1) * size; ++e) {
        if (ranks[e] > first) {
          second = first;
          first = ranks[e];
        } else if (ranks[e] > second) {
          second = ranks[e];
        }
      }
      groups[g] = p.group_best == 2 && size > 1 ? first + second : first;
      group_state[g] = 0;
    }
    __syncwarp();
    for (int i = 0; i < p.topk_groups; ++i) take_best(groups, group_state, p.num_groups);
    for (int e = lane; e < experts; e += 32) state[e] = group_state[e / size] == 1 ? 0 : 2;
    __syncwarp();
  }
  double sum = 1e-20;
  for (int i = 0; i < p.top_k; ++i) {
    const int e = take_best(ranks, state, experts);
    if (lane == 0) chosen[i] = e;
    sum += scores[e];
  }
  __syncwarp();
  for (int i = lane; i < p.top_k; i += 32) {
    const int64_t at = blockIdx.x * int64_t(p.top_k) + i;
    p.ids[at] = chosen[i];
    p.weights[at] = float(scores[chosen[i]] / (p.normalize ? sum : 1.) * double(p.scale));
  }
}

}  // namespace flashmla
