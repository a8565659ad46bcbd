// A token drawn from a row of logits, as packages/engine draws it on the host, but for what falls within 1e-8 of another token's share.
//
// Probabilities are whole numbers, e^((logit - largest) / temperature) in units of 2^-44: sums don't depend on the order of threads.
// 1. Each warp adds up a stretch of the tokens. Without a cut the drawn one is in the stretch whose share the random number falls into: all threads
//    look for it there, four tokens each.
// 2. With a cut, the tokens that may be needed are gathered, sorted by a bitonic network, and walked the likeliest first. There is room for 4096;
//    where more may be needed, as where the logits are not numbers, the host is left to draw. How far the k likeliest go is found by the digits of
//    their sort keys.
#pragma once
#include "bits.h"
#include "reduce.h"

namespace flashmla {

constexpr int kSampleThreads = 1024, kCandidates = 4096, kOfThread = kCandidates / kSampleThreads;
constexpr int kUnitBits = 44, kDigitBits = 11;
constexpr double kNegligible = 40.0;
constexpr int32_t kLeftToHost = -1;

// Sorts as logits do, larger ones first.
__device__ __forceinline__ uint32_t descending(float x) {
  const uint32_t word = x == 0.f ? 0u : __float_as_uint(x);
  return word >> 31 ? word : ~(word | 0x80000000u);
}
__device__ __forceinline__ float ascended(uint32_t key) { return __uint_as_float(key >> 31 ? key : ~key & 0x7fffffffu); }

// e^x in units of 2^-44 for x from -40 to 0, within 3e-10 of it: by a polynomial of what is left of x besides whole powers of two. Numbers that are
// added to 2^52, or to 1.5 times it, have their whole part in the lowest bits.
__device__ __forceinline__ uint64_t power_units(double x) {
  constexpr double kWhole = 0x1.8p52, kNatural = 0x1p52;
  const double shifted = fma(x, 1.4426950408889634074, kWhole);
  const double rest = fma(shifted - kWhole, -0.69314718055994530942, x);
  const int64_t power = int32_t(__double_as_longlong(shifted)) + kUnitBits;
  double sum = 1.0 / 40320;
  constexpr double kTerms[] = {1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0};
#pragma unroll
  for (double term : kTerms) sum = fma(sum, rest, term);
  const double scaled = __longlong_as_double(__double_as_longlong(sum) + (power << 52));
  return uint64_t(__double_as_longlong(scaled + kNatural)) & ((uint64_t(1) << 52) - 1);
}

struct SampleRow {
  const float* logits;
  int vocab;
  double inverse_temperature, largest, lowest;

  __device__ __forceinline__ bool counts(float x) const { return double(x) >= lowest; }
  __device__ __forceinline__ uint64_t weight(float x) const {
    return counts(x) ? power_units(fmax((double(x) - largest) * inverse_temperature, -kNegligible)) : 0;
  }
  // Tokens of each warp's stretch: whole groups of four a lane.
  __device__ __forceinline__ int stretch() const { return (vocab + 32 * 128 - 1) / (32 * 128) * 128; }
  // Logits of four tokens from `first` on, -INFINITY past the end.
  __device__ __forceinline__ void load(int first, float (&x)[4]) const {
    const float* at = logits + first;
    if (first + 4 <= vocab && reinterpret_cast<uint64_t>(at) % 16 == 0) {
      const float4 four = *reinterpret_cast<const float4*>(at);
      x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
      return;
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) x[e] = first + e < vocab ? at[e] : -INFINITY;
  }
  // Calls `take` with each logit and its token, a warp's stretch by its lanes, four tokens at a time; tokens past the end are -INFINITY.
  template <typename Take>
  __device__ __forceinline__ void each(const Take& take) const {
    constexpr int kAhead = 4;
    const int first = (threadIdx.x >> 5) * stretch(), last = min(first + stretch(), vocab);
    for (int start = first + (threadIdx.x & 31) * 4; start < last; start += kAhead * 128) {
      float x[kAhead][4];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (start + j * 128 < last) load(start + j * 128, x[j]);
      }
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (start + j * 128 >= last) break;
#pragma unroll
        for (int e = 0; e < 4; ++e) take(x[j][e], start + j * 128 + e);
      }
    }
  }
};

// The token among all, in their order, whose share `target` falls into; `mine` is what the thread's tokens have.
__device__ __forceinline__ void walk_all(const SampleRow& row, uint64_t mine, uint64_t target, uint64_t* shared, uint64_t* found, int32_t* id) {
  const int thread = threadIdx.x, warp = thread >> 5;
  uint64_t total;
  uint64_t before = block_scan(mine, shared, total);
  if ((thread & 31) == 31 && target < before + mine && (warp == 0 || target >= shared[warp - 1])) {
    found[0] = uint64_t(warp);
    found[1] = warp == 0 ? 0 : shared[warp - 1];
  }
  __syncthreads();
  const int first = int(found[0]) * row.stretch(), last = min(first + row.stretch(), row.vocab);
  uint64_t passed = found[1];
  for (int start = first; start < last; start += 4 * kSampleThreads) {
    float x[4];
    uint64_t weights[4] = {}, sum = 0;
    const int i = start + 4 * thread;
    if (i < last) row.load(i, x);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (i + e < last) weights[e] = row.weight(x[e]);
      sum += weights[e];
    }
    before = passed + block_scan(sum, shared, total);
    passed += total;
    if (target < before || target >= before + sum) continue;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (before <= target && target < before + weights[e]) *id = i + e;
      before += weights[e];
    }
  }
}

// A sort key such that at least `least` and at most kCandidates tokens have none beyond it; false where there is none. `counters` has 2^11 words.
__device__ __forceinline__ bool key_limit(const SampleRow& row, uint64_t least, uint64_t count, uint32_t* counters, uint64_t* shared, uint64_t* found,
                                          uint32_t& limit) {
  limit = ~0u;
  if (count <= kCandidates) return true;
  const int thread = threadIdx.x;
  uint32_t prefix = 0;
  uint64_t passed = 0, total;  // tokens before those that begin like `prefix`
  for (int shift = 32 - kDigitBits;; shift = max(shift - kDigitBits, 0)) {
    const int bits = shift == 0 ? 32 % kDigitBits : kDigitBits;
    __syncthreads();
    counters[2 * thread] = counters[2 * thread + 1] = 0;
    __syncthreads();
    row.each([&](float x, int) {
      const uint32_t key = descending(x);
      if ((uint64_t(key) >> (shift + bits)) == prefix) atomicAdd(&counters[key >> shift & ((1u << bits) - 1)], 1u);
    });
    __syncthreads();
    const uint64_t a = counters[2 * thread], b = counters[2 * thread + 1];
    const uint64_t before = passed + block_scan(a + b, shared, total);
    if (before < least && least <= before + a + b) {
      const bool second = before + a < least;
      found[0] = uint64_t(2 * thread + second);
      found[1] = second ? before + a : before;
      found[2] = second ? before + a + b : before + a;
    }
    __syncthreads();
    prefix = prefix << bits | uint32_t(found[0]);
    passed = found[1];
    if (found[2] <= kCandidates) {
      limit = uint32_t(((uint64_t(prefix) + 1) << shift) - 1);
      return true;
    }
    if (shift == 0) return false;
  }
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
  __shared__ uint64_t shared[32];
  __shared__ uint64_t found[3];
  __shared__ float maxima[32];
  __shared__ int gathered;
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31;
  const float* given = p.rows + blockIdx.x * 6;
  const double temperature = given[0], top_p = given[2], min_p = given[3], random = double(given[4]) + double(given[5]);
  const uint64_t top_k = uint64_t(given[1]);
  int32_t* id = p.ids + blockIdx.x;
  SampleRow row = {p.logits + blockIdx.x * p.vocab, int(p.vocab), 0.0, 0.0, 0.0};

  float most = -INFINITY;
  uint32_t wrong = 0, first = ~0u;  // where the thread's largest stands first
  row.each([&](float x, int i) {
    if (x > most) most = x, first = uint32_t(i);
    wrong |= !(x == x);
  });
  const float own = most;
  most = warp_max(most);
  if (lane == 0) maxima[warp] = most;
  if (thread == 0) *id = kLeftToHost, gathered = 0;
  const uint64_t all_wrong = block_total(wrong, shared);
  most = warp_max(maxima[lane]);
  if (all_wrong > 0 || !(most > -INFINITY)) return;
  if (temperature == 0.0 || most == INFINITY) {  // the first of the largest
    keys[thread] = own == most ? uint64_t(first) : ~uint64_t(0);
    for (int d = kSampleThreads / 2; d > 0; d >>= 1) {
      __syncthreads();
      if (thread < d) keys[thread] = min(keys[thread], keys[thread + d]);
    }
    if (thread == 0) *id = int32_t(keys[0]);
    return;
  }

  row.inverse_temperature = 1.0 / temperature;
  row.largest = most;
  row.lowest = fmax(min_p > 0.0 ? row.largest + temperature * log(min_p) : -INFINITY, row.largest - kNegligible * temperature);
  uint64_t mine = 0;
  uint32_t many = 0;
  row.each([&](float x, int) {
    mine += row.weight(x);
    many += row.counts(x);
  });
  const uint64_t total = block_total(mine, shared), count = block_total(many, shared);
  if (top_k == 0 && top_p >= 1.0) {
    walk_all(row, mine, uint64_t(random * double(total)), shared, found, id);
    return;
  }
  // What may be needed: sort keys up to a limit, or logits that are not so light that all like them together have less than 1 - top_p.
  uint32_t limit = ~0u;
  if (top_k > 0 && !key_limit(row, min(top_k, count), count, reinterpret_cast<uint32_t*>(keys), shared, found, limit)) return;
  const double light = top_k > 0 ? 0.0 : double(total) * (1.0 - top_p) / double(count) - 1.0;
  const double least = light > 1.0 ? fmax(row.lowest, row.largest + temperature * (log(light) - kUnitBits * 0.69314718055994531 - 1e-9)) : row.lowest;
  __syncthreads();
  row.each([&](float x, int i) {
    const uint32_t key = descending(x);
    if (!(double(x) >= least) || key > limit || i >= row.vocab) return;
    const int at = atomicAdd(&gathered, 1);
    if (at < kCandidates) keys[at] = uint64_t(key) << 32 | uint32_t(i);
  });
  __syncthreads();
  const int candidates = gathered;
  if (candidates > kCandidates) return;
  int size = 1;
  while (size < candidates) size <<= 1;
  for (int i = candidates + thread; i < size; i += kSampleThreads) keys[i] = ~uint64_t(0);
  sort_candidates(keys, size);
  const int kept = top_k > 0 ? int(min(top_k, uint64_t(candidates))) : candidates;
  walk_sorted(row, keys, kept, top_p, top_k > 0 ? 0 : total, random, shared, found, id);
}

}  // namespace flashmla
