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

// Words that sort as values do, zeros alike; NaN comes before every number, and 0 stands for what is taken.
constexpr uint64_t kTaken = 0, kLeast = 1;
__device__ __forceinline__ uint64_t ascending(double value) {
  const uint64_t word = uint64_t(__double_as_longlong(value + 0.));
  return !(value == value) ? kLeast : word >> 63 ? ~word : word | uint64_t(1) << 63;
}

// The largest free entry of keys [0, n), the first of equal ones, marked as taken; kNone where all are.
__device__ __forceinline__ int take_best(uint64_t* keys, int n) {
  const int lane = threadIdx.x;
  uint64_t best = kTaken;
  int index = kNone;
  for (int e = lane; e < n; e += 32) {
    if (keys[e] <= best) continue;
    best = keys[e];
    index = e;
  }
  const uint32_t high = __reduce_max_sync(kWarp, uint32_t(best >> 32)), low = __reduce_max_sync(kWarp, uint32_t(best >> 32) == high ? uint32_t(best) : 0u);
  const int winner = __reduce_min_sync(kWarp, best == (uint64_t(high) << 32 | low) ? index : kNone);
  if (lane == 0 && winner != kNone) keys[winner] = kTaken;
  __syncwarp();
  return winner;
}

// A warp a token, scores in double as the reference has them.
//
// 1. Scores by sigmoid or softmax; the bias steers the choice only.
// 2. Groups rank by their best expert, or by the sum of their two best (DeepSeek-V2 and V3); experts of the others are closed.
// 3. The best free expert, top_k times; weights are the scores, normalized where asked for.
__device__ __forceinline__ void route(const MlaRouteParams& p) {
  __shared__ double scores[kMaxExperts];
  __shared__ uint64_t ranks[kMaxExperts], groups[kMaxExperts];
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
    ranks[e] = ascending(scores[e] + (p.bias != nullptr ? double(p.bias[e]) : 0.));
  }
  __syncwarp();
  if (p.num_groups > 1) {
    const int size = experts / p.num_groups;
    for (int g = lane; g < p.num_groups; g += 32) {
      double first = -INFINITY, second = -INFINITY;
      for (int e = g * size; e < (g + 1) * size; ++e) {
        const double rank = scores[e] + (p.bias != nullptr ? double(p.bias[e]) : 0.);
        if (rank > first) {
          second = first;
          first = rank;
        } else if (rank > second) {
          second = rank;
        }
      }
      groups[g] = ascending(p.group_best == 2 && size > 1 ? first + second : first);
    }
    __syncwarp();
    for (int i = 0; i < p.topk_groups; ++i) take_best(groups, p.num_groups);
    for (int e = lane; e < experts; e += 32) {
      if (groups[e / size] != kTaken) ranks[e] = kTaken;
    }
    __syncwarp();
  }
  double sum = 1e-20;
  for (int i = 0; i < p.top_k; ++i) {
    const int e = take_best(ranks, experts);
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
