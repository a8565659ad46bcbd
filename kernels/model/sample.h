// A token drawn from a row of logits, as packages/engine draws it on the host, but for what falls within 1e-8 of another token's share.
//
// Probabilities are whole numbers, e^((logit - largest) / temperature) in units of 2^-44: sums don't depend on the order of threads.
// 1. Without a cut the tokens are walked in their order: each thread has a stretch of them, and a scan finds the thread that has the drawn one.
// 2. With one, the tokens that may be needed are gathered, sorted by a bitonic network, and walked the likeliest first. There is room for 4096;
//    where more may be needed, as where the logits are not numbers, the host is left to draw.
#pragma once
#include "bits.h"
#include "reduce.h"

namespace flashmla {

constexpr int kSampleThreads = 1024, kCandidates = 4096, kOfThread = kCandidates / kSampleThreads;
constexpr double kUnits = 0x1p44, kNegligible = 40.0;
constexpr int32_t kLeftToHost = -1;

// Sorts as logits do, larger ones first.
__device__ __forceinline__ uint32_t descending(float x) {
  const uint32_t word = x == 0.f ? 0u : __float_as_uint(x);
  return word >> 31 ? word : ~(word | 0x80000000u);
}
__device__ __forceinline__ float ascended(uint32_t key) { return __uint_as_float(key >> 31 ? key : ~key & 0x7fffffffu); }

// The sum of what threads before this one have, and of all. `shared` has 33 words.
__device__ __forceinline__ uint64_t block_scan(uint64_t mine, uint64_t* shared, uint64_t& total) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  uint64_t sum = mine;
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const uint64_t other = __shfl_up_sync(kWarp, sum, d);
    if (lane >= d) sum += other;
  }
  __syncthreads();
  if (lane == 31) shared[warp] = sum;
  __syncthreads();
  if (warp == 0) {
    uint64_t part = shared[lane];
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
      const uint64_t other = __shfl_up_sync(kWarp, part, d);
      if (lane >= d) part += other;
    }
    shared[lane] = part;
  }
  __syncthreads();
  total = shared[31];
  return (warp == 0 ? 0 : shared[warp - 1]) + sum - mine;
}
__device__ __forceinline__ uint64_t block_total(uint64_t mine, uint64_t* shared) {
  uint64_t total;
  block_scan(mine, shared, total);
  return total;
}

struct SampleRow {
  const float* logits;
  int64_t vocab;
  double temperature, largest, lowest;

  __device__ __forceinline__ bool counts(float x) const { return double(x) >= lowest; }
  __device__ __forceinline__ uint64_t weight(float x) const { return counts(x) ? uint64_t(exp((double(x) - largest) / temperature) * kUnits) : 0; }
};

// The token among all, in their order, whose share `target` falls into.
__device__ __forceinline__ void walk_all(const SampleRow& row, uint64_t target, uint64_t* shared, int32_t* id) {
  const int64_t each = (row.vocab + kSampleThreads - 1) / kSampleThreads, first = threadIdx.x * each, last = min(first + each, row.vocab);
  uint64_t mine = 0, total;
  for (int64_t i = first; i < last; ++i) mine += row.weight(row.logits[i]);
  uint64_t before = block_scan(mine, shared, total);
  if (target < before || target >= before + mine) return;
  for (int64_t i = first; i < last; ++i) {
    before += row.weight(row.logits[i]);
    if (target < before) {
      *id = int32_t(i);
      return;
    }
  }
}

// A logit of which at least `least` and at most kCandidates tokens have no less, or NaN if there is none to be found.
__device__ __forceinline__ double threshold(const SampleRow& row, uint64_t least, uint64_t count, uint64_t* shared) {
  if (count <= kCandidates) return row.lowest;
  double low = row.lowest, high = row.largest;
  for (int step = 0; step < 40; ++step) {
    const double middle = (low + high) / 2;
    uint64_t mine = 0;
    for (int64_t i = threadIdx.x; i < row.vocab; i += kSampleThreads) mine += double(row.logits[i]) >= middle;
    const uint64_t found = block_total(mine, shared);
    if (found < least) high = middle;
    else if (found > kCandidates) low = middle;
    else return middle;
  }
  return nan_value();
}

__device__ __forceinline__ void sort_candidates(uint64_t* keys, int size) {
  for (int span = 2; span <= size; span <<= 1) {
    for (int distance = span >> 1; distance > 0; distance >>= 1) {
      __syncthreads();
      for (int i = threadIdx.x; i < size; i += kSampleThreads) {
        const int other = i ^ distance;
        if (other <= i) continue;
        const uint64_t a = keys[i], b = keys[other];
        if ((a > b) == ((i & span) == 0)) keys[i] = b, keys[other] = a;
      }
    }
  }
  __syncthreads();
}

// Draws from the sorted candidates' first ones that have `share` of `whole` together (0: of their own sum).
__device__ __forceinline__ void walk_sorted(const SampleRow& row, const uint64_t* keys, int count, double share, uint64_t whole, double random,
                                            uint64_t* shared, uint64_t* kept, int32_t* id) {
  uint64_t weights[kOfThread], mine = 0, sum;
#pragma unroll
  for (int j = 0; j < kOfThread; ++j) {
    const int at = threadIdx.x * kOfThread + j;
    weights[j] = at < count ? row.weight(ascended(uint32_t(keys[at] >> 32))) : 0;
    mine += weights[j];
  }
  const uint64_t before = block_scan(mine, shared, sum);
  const double wanted = ceil(share * double(whole == 0 ? sum : whole));
  const uint64_t needed = share >= 1.0 || wanted >= double(sum) ? sum : wanted < 1.0 ? 1 : uint64_t(wanted);
  uint64_t at = before;
#pragma unroll
  for (int j = 0; j < kOfThread; ++j) {  // the token that makes it enough
    if (at < needed && needed <= at + weights[j]) *kept = at + weights[j];
    at += weights[j];
  }
  __syncthreads();
  const uint64_t target = uint64_t(random * double(*kept));
  at = before;
#pragma unroll
  for (int j = 0; j < kOfThread; ++j) {
    if (at <= target && target < at + weights[j]) *id = int32_t(uint32_t(keys[threadIdx.x * kOfThread + j]));
    at += weights[j];
  }
}

// Grid (n), 1024 threads.
__device__ __forceinline__ void sample(const MlaSampleParams& p) {
  __shared__ uint64_t keys[kCandidates];
  __shared__ uint64_t shared[33];
  __shared__ uint64_t kept;
  __shared__ float maxima[32];
  __shared__ int gathered;
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31;
  const float* given = p.rows + blockIdx.x * 6;
  const double top_p = given[2], min_p = given[3], random = double(given[4]) + double(given[5]);
  const uint64_t top_k = uint64_t(given[1]);
  int32_t* id = p.ids + blockIdx.x;
  SampleRow row = {p.logits + blockIdx.x * p.vocab, p.vocab, given[0], 0.0, 0.0};

  float most = -INFINITY;
  uint64_t wrong = 0;
  for (int64_t i = thread; i < p.vocab; i += kSampleThreads) {
    const float x = row.logits[i];
    most = fmaxf(most, x);
    wrong += !(x == x);
  }
  most = warp_max(most);
  if (lane == 0) maxima[warp] = most;
  if (thread == 0) *id = kLeftToHost, gathered = 0;
  wrong = block_total(wrong, shared);
  most = warp_max(maxima[lane]);
  if (wrong > 0 || !(most > -INFINITY)) return;
  if (row.temperature == 0.0 || most == INFINITY) {  // the first of the largest
    uint64_t first = ~uint64_t(0);
    for (int64_t i = p.vocab - 1 - thread; i >= 0; i -= kSampleThreads) {
      if (row.logits[i] == most) first = uint64_t(i);
    }
    keys[thread] = first;
    for (int d = kSampleThreads / 2; d > 0; d >>= 1) {
      __syncthreads();
      if (thread < d) keys[thread] = min(keys[thread], keys[thread + d]);
    }
    if (thread == 0) *id = int32_t(keys[0]);
    return;
  }

  row.largest = most;
  row.lowest = fmax(min_p > 0.0 ? row.largest + row.temperature * log(min_p) : -INFINITY, row.largest - kNegligible * row.temperature);
  uint64_t mine = 0, many = 0;
  for (int64_t i = thread; i < p.vocab; i += kSampleThreads) {
    mine += row.weight(row.logits[i]);
    many += row.counts(row.logits[i]);
  }
  const uint64_t total = block_total(mine, shared), count = block_total(many, shared);
  if (top_k == 0 && top_p >= 1.0) {
    walk_all(row, uint64_t(random * double(total)), shared, id);
    return;
  }
  const double least = top_k > 0 ? threshold(row, min(top_k, count), count, shared) : 0.0;
  const double light = top_k > 0 ? 0.0 : double(total) * (1.0 - top_p) / double(count) - 1.0;
  if (!(least == least)) return;
  for (int64_t i = thread; i < p.vocab; i += kSampleThreads) {
    const float x = row.logits[i];
    if (!row.counts(x) || (top_k > 0 ? double(x) < least : double(row.weight(x)) < light)) continue;
    const int at = atomicAdd(&gathered, 1);
    if (at < kCandidates) keys[at] = uint64_t(descending(x)) << 32 | uint32_t(i);
  }
  __syncthreads();
  const int found = gathered;
  if (found > kCandidates) return;
  int size = 1;
  while (size < found) size <<= 1;
  for (int i = found + thread; i < size; i += kSampleThreads) keys[i] = ~uint64_t(0);
  sort_candidates(keys, size);
  const int candidates = top_k > 0 ? int(min(top_k, uint64_t(found))) : found;
  walk_sorted(row, keys, candidates, top_p, top_k > 0 ? 0 : total, random, shared, &kept, id);
}

}  // namespace flashmla
