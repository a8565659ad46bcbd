// A block on the host: its threads as coroutines that take turns where they meet, at barriers and warp-wide operations, for the kernels of ../model.
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

#define FLASHMLA_ON_HOST
#define __device__
#define __forceinline__ inline
#define __shared__ thread_local  // inside of functions, with extern too
#define __align__(n) __attribute__((aligned(n)))
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__

using std::max;
using std::min;

struct uint2 {
  uint32_t x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = uint64_t(b) << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= uint32_t(both >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return out;
}
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
template <typename T>
T __ldg(const T* at) {
  return *at;
}

struct Index {
  unsigned x, y, z;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

namespace block {

constexpr int kMost = 1024, kWarp = 32;
struct Thread {
  ucontext_t start;
  jmp_buf at;  // once it has started: unlike a context, it is switched to without a system call
  bool made, started, ended;
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

inline void switch_to(jmp_buf& from, int number) {
  if (_setjmp(from) != 0) return;
  running = number;
  threadIdx.x = number;
  Thread& thread = threads[number];
  if (thread.started) _longjmp(thread.at, 1);
  thread.started = true;
  setcontext(&thread.start);
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
inline void make(Thread& thread, std::vector<char>& stack) {
  stack.resize(1 << 16);
  getcontext(&thread.start);
  thread.start.uc_stack.ss_sp = stack.data();
  thread.start.uc_stack.ss_size = stack.size();
  makecontext(&thread.start, enter, 0);
  thread.made = true;
}

// Runs a kernel's function in all threads of all blocks.
inline void launch(Index grid, int size, std::function<void()> function) {
  static std::vector<std::vector<char>> stacks(kMost);
  body = std::move(function);
  gridDim = grid;
  blockDim = {unsigned(size), 1, 1};
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        all.start(0, size);
        for (int first = 0; first < size; first += kWarp) warps[first / kWarp].start(first, min(kWarp, size - first));
        for (int i = 0; i < size; ++i) {
          threads[i].ended = false;
          if (!threads[i].made) make(threads[i], stacks[i]);
        }
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
template <typename T>
T __shfl_xor_sync(unsigned, T value, int by) {
  return block::exchange(value)[block::running % block::kWarp ^ by];
}

namespace flashmla {

inline thread_local float4 dynamic_shared[232448 / sizeof(float4)];

// As ../model/mma.h says where the values of the matrices are.
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Fragments {
    uint32_t a[4], b[2];
  } mine;
  std::memcpy(mine.a, a, sizeof(a));
  std::memcpy(mine.b, b, sizeof(b));
  const Fragments* all = block::exchange(mine);
  const auto half = [](uint32_t word, int k) { return double(__uint_as_float((k & 1 ? word >> 16 : word & 0xffff) << 16)); };
  const int lane = block::running % block::kWarp;
  for (int e = 0; e < 4; ++e) {
    const int row = lane / 4 + (e >> 1) * 8, column = lane % 4 * 2 + (e & 1);
    double sum = d[e];
    for (int k = 0; k < 16; ++k) {
      const int pair = k % 8 / 2, upper = k / 8;
      sum += half(all[row % 8 * 4 + pair].a[row / 8 + 2 * upper], k) * half(all[column * 4 + pair].b[upper], k);
    }
    d[e] = float(sum);
  }
}

}  // namespace flashmla
