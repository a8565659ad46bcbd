// A block on the host: its threads as coroutines that take turns where they meet, at barriers and warp-wide operations, for kernels that use little else
// of a GPU: those of ../model, ../append and ../portable.
// What stands for shared memory is one for all blocks: they run one at a time, and find there what the one before has left.
#pragma once
#undef _FORTIFY_SOURCE  // which takes jumps between stacks for mistakes; without effect once a header of the library is there
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "vector_types.h"

#define FLASHMLA_ON_HOST
#define __device__
#define __forceinline__ inline
#define __shared__ thread_local  // in functions it is static, and extern may stand before it (-fno-extern-tls-init: there is nothing to set up)
#define __align__(n) __attribute__((aligned(n)))
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__

using std::max;
using std::min;

struct uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <typename To, typename From>
To with_bits_of(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To other;
  std::memcpy(&other, &value, sizeof(To));
  return other;
}
inline uint32_t __float_as_uint(float value) { return with_bits_of<uint32_t>(value); }
inline float __uint_as_float(uint32_t bits) { return with_bits_of<float>(bits); }
inline int64_t __double_as_longlong(double value) { return with_bits_of<int64_t>(value); }
inline double __longlong_as_double(int64_t bits) { return with_bits_of<double>(bits); }
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = uint64_t(b) << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= uint32_t(both >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return out;
}
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __log2f(float x) { return std::log2(x); }
inline int __float2int_rn(float x) { return int(std::nearbyint(x)); }
inline int __ffs(uint32_t bits) { return __builtin_ffs(int(bits)); }
template <typename T>
T __ldg(const T* at) {
  return *at;
}
template <typename T>
T __ldcs(const T* at) {
  return *at;
}

struct Index {
  unsigned x, y, z;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

namespace block {

constexpr int kMost = 1024, kWarp = 32;
struct Thread {
  std::vector<char> stack;  // of one that has started
  jmp_buf at;               // where it goes on: unlike a context, it is switched to without a system call
  bool ended;
};
inline Thread threads[kMost];
inline jmp_buf caller;
inline int running;
inline std::function<void()> body;

// Where threads meet that have not ended: `size` of them from `first` on.
struct Meeting {
  int first, size, expected, arrived, round;

  void start(int first_, int size_) { first = first_, size = expected = size_, arrived = 0; }
  void open_if_all() {
    if (arrived < expected) return;
    arrived = 0;
    ++round;
  }
  void arrive() {
    ++arrived;
    open_if_all();
  }
  void leave() {
    --expected;
    if (arrived > 0) open_if_all();
  }
};
inline Meeting all, warps[kMost / kWarp];

void enter();
[[noreturn]] inline void start(Thread& thread) {
  thread.stack.resize(1 << 16);
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = thread.stack.data();
  context.uc_stack.ss_size = thread.stack.size();
  makecontext(&context, enter, 0);
  setcontext(&context);
  std::abort();
}
inline void switch_to(jmp_buf& from, int number) {
  if (_setjmp(from) != 0) return;
  running = number;
  threadIdx.x = number;
  Thread& thread = threads[number];
  if (thread.stack.empty()) start(thread);
  _longjmp(thread.at, 1);
}
inline Meeting& own_warp() { return warps[running / kWarp]; }
// Lets another thread of those that meet run, if it has not ended; whether there was one.
inline bool yield(const Meeting& meeting) {
  const int mine = running, place = mine - meeting.first;
  for (int i = 1; i < meeting.size; ++i) {
    const int other = meeting.first + (place + i) % meeting.size;
    if (threads[other].ended) continue;
    switch_to(threads[mine].at, other);
    return true;
  }
  return false;
}
inline void meet(Meeting& meeting) {
  const int round = meeting.round;
  meeting.arrive();
  while (meeting.round == round) {
    if (!yield(meeting)) std::abort();  // the others wait elsewhere
  }
}

// A thread's life: a block after the other.
inline void enter() {
  for (;;) {
    body();
    Thread& mine = threads[running];
    mine.ended = true;
    all.leave();
    own_warp().leave();
    if (!yield(all) && _setjmp(mine.at) == 0) _longjmp(caller, 1);
  }
}

// Runs a kernel's function in all threads of all blocks.
inline void launch(Index grid, int size, std::function<void()> function) {
  body = std::move(function);
  gridDim = grid;
  blockDim = {unsigned(size), 1, 1};
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        all.start(0, size);
        for (int first = 0; first < size; first += kWarp) warps[first / kWarp].start(first, min(kWarp, size - first));
        for (int i = 0; i < size; ++i) threads[i].ended = false;
        switch_to(caller, 0);
      }
    }
  }
}

// What each lane of the warp has brought. Those of the next operation bring it to the other set, so that nobody reads what is new.
template <typename T>
const T* exchange(const T& mine) {
  static T brought[2][kMost];
  T* set = brought[own_warp().round & 1];
  set[running] = mine;
  meet(own_warp());
  return set + running / kWarp * kWarp;
}

}  // namespace block

inline void __syncwarp() { block::meet(block::own_warp()); }
inline void __syncthreads() { block::meet(block::all); }
inline int lane_of_warp() { return block::running % block::kWarp; }
template <typename T>
T __shfl_xor_sync(unsigned, T value, int by) {
  return block::exchange(value)[lane_of_warp() ^ by];
}
template <typename T>
T __shfl_sync(unsigned, T value, int source) {
  return block::exchange(value)[source & 31];
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int by) {
  const T* all = block::exchange(value);
  return all[lane_of_warp() >= by ? lane_of_warp() - by : lane_of_warp()];
}
inline int __reduce_min_sync(unsigned, int value) {
  const int* all = block::exchange(value);
  return *std::min_element(all, all + block::kWarp);
}
inline int __reduce_max_sync(unsigned, int value) {
  const int* all = block::exchange(value);
  return *std::max_element(all, all + block::kWarp);
}
inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  const unsigned* all = block::exchange(value);
  return *std::max_element(all, all + block::kWarp);
}
inline int __reduce_add_sync(unsigned, int value) {
  const int* all = block::exchange(value);
  int sum = 0;
  for (int i = 0; i < block::kWarp; ++i) sum += all[i];
  return sum;
}
template <typename T>
T atomicAdd(T* target, T by) {
  const T before = *target;
  *target += by;
  return before;
}
inline unsigned __ballot_sync(unsigned, bool value) {
  const bool* all = block::exchange(value);
  unsigned bits = 0;
  for (int i = 0; i < block::kWarp; ++i) bits |= unsigned(all[i]) << i;
  return bits;
}

namespace flashmla {

// In place of PTX: ../common/numeric.h, ../model/mma.h and ../portable/decode.cu.
inline uint32_t half_bits(float x) {
  const _Float16 half = x;
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
inline float half_of(uint32_t bits) {
  const uint16_t word = uint16_t(bits);
  _Float16 half;
  std::memcpy(&half, &word, 2);
  return float(half);
}
struct Bf16 {
  static uint32_t bits(float x) {
    const uint32_t word = __float_as_uint(x);
    return x != x ? 0x7fffu : (word + 0x7fffu + (word >> 16 & 1)) >> 16;
  }
  static float value(uint32_t bits) { return __uint_as_float(bits << 16); }
  static uint32_t pack(float lo, float hi) { return bits(hi) << 16 | bits(lo); }
};
struct F16 {
  static float value(uint32_t bits) { return half_of(bits); }
  static uint32_t pack(float lo, float hi) { return half_bits(hi) << 16 | half_bits(lo); }
};
inline float exp2_approx(float x) { return std::exp2(x); }

// As ../model/mma.h says where the values of the matrices are.
template <typename T>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Fragments {
    uint32_t a[4], b[2];
  };
  const Fragments* all = block::exchange(Fragments{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  const auto value = [](uint32_t word, int k) { return double(T::value(k & 1 ? word >> 16 : word & 0xffff)); };
  for (int e = 0; e < 4; ++e) {
    const int row = lane_of_warp() / 4 + (e >> 1) * 8, column = lane_of_warp() % 4 * 2 + (e & 1);
    double sum = d[e];
    for (int k = 0; k < 16; ++k) {
      const int pair = k % 8 / 2, upper = k / 8;
      sum += value(all[row % 8 * 4 + pair].a[row / 8 + 2 * upper], k) * value(all[column * 4 + pair].b[upper], k);
    }
    d[e] = float(sum);
  }
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_16x8x16<Bf16>(d, a, b[0], b[1]); }
// A lane's row of 16 bytes of four matrices of 8 x 8, and what it gets of them: two values of a row of each, or of a column.
inline void load_matrices(uint32_t (&d)[4], const uint16_t* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) std::abort();
  const uint16_t* const* rows = block::exchange(row);
  for (int i = 0; i < 4; ++i) std::memcpy(&d[i], rows[8 * i + lane_of_warp() / 4] + lane_of_warp() % 4 * 2, 4);
}

namespace portable {

template <typename T>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  mma_16x8x16<T>(d, a, b0, b1);
}
inline void load_transposed(uint32_t (&d)[4], const uint16_t* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) std::abort();
  const uint16_t* const* rows = block::exchange(row);
  for (int i = 0; i < 4; ++i) {
    const int column = lane_of_warp() / 4, first = 8 * i + lane_of_warp() % 4 * 2;
    d[i] = rows[first][column] | uint32_t(rows[first + 1][column]) << 16;
  }
}

inline thread_local uint4 raw[232448 / sizeof(uint4)];

}  // namespace portable

inline thread_local float4 dynamic_shared[232448 / sizeof(float4)];

}  // namespace flashmla
