// A warp on the host: 32 lanes as coroutines that meet at every warp-wide operation, for device code that uses nothing else of a GPU.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#define __device__
#define __host__
#define __forceinline__ inline

inline float __fdividef(float a, float b) { return a / b; }

using std::max;
using std::min;

struct {
  unsigned x;
} threadIdx;

namespace warp {

constexpr int kLanes = 32;
inline ucontext_t scheduler, lanes[kLanes];
inline bool done[kLanes];
inline int32_t slots[2][kLanes];
inline int round;
inline std::function<void(int)> body;

inline void enter(int lane) {
  body(lane);
  done[lane] = true;
  swapcontext(&lanes[lane], &scheduler);
}

// Every lane's value. Lanes of the next operation write the other set, so that nobody reads what is new.
inline const int32_t* meet(int32_t value) {
  const int lane = threadIdx.x, set = round & 1;
  slots[set][lane] = value;
  swapcontext(&lanes[lane], &scheduler);
  return slots[set];
}

// Runs `function(lane)` in all lanes.
inline void run(std::function<void(int)> function) {
  static std::vector<std::vector<char>> stacks(kLanes, std::vector<char>(1 << 16));
  body = std::move(function);
  for (int lane = 0; lane < kLanes; ++lane) {
    done[lane] = false;
    getcontext(&lanes[lane]);
    lanes[lane].uc_stack.ss_sp = stacks[lane].data();
    lanes[lane].uc_stack.ss_size = stacks[lane].size();
    lanes[lane].uc_link = nullptr;
    makecontext(&lanes[lane], reinterpret_cast<void (*)()>(enter), 1, lane);
  }
  for (round = 0; !std::all_of(done, done + kLanes, [](bool d) { return d; }); ++round) {
    for (int lane = 0; lane < kLanes; ++lane) {
      threadIdx.x = lane;
      if (!done[lane]) swapcontext(&scheduler, &lanes[lane]);
    }
  }
}

}  // namespace warp

inline int __shfl_sync(unsigned, int value, int source) { return warp::meet(value)[source & 31]; }
inline int __shfl_up_sync(unsigned, int value, int by) {
  const int lane = threadIdx.x;
  const int32_t* all = warp::meet(value);
  return all[lane >= by ? lane - by : lane];
}
inline int __reduce_min_sync(unsigned, int value) {
  const int32_t* all = warp::meet(value);
  return *std::min_element(all, all + warp::kLanes);
}
inline int __reduce_max_sync(unsigned, int value) {
  const int32_t* all = warp::meet(value);
  return *std::max_element(all, all + warp::kLanes);
}
inline int __reduce_add_sync(unsigned, int value) {
  const int32_t* all = warp::meet(value);
  int sum = 0;
  for (int i = 0; i < warp::kLanes; ++i) sum += all[i];
  return sum;
}
inline unsigned __ballot_sync(unsigned, bool value) {
  const int32_t* all = warp::meet(value);
  unsigned bits = 0;
  for (int i = 0; i < warp::kLanes; ++i) bits |= unsigned(all[i] != 0) << i;
  return bits;
}
inline int __ffs(unsigned bits) { return __builtin_ffs(int(bits)); }
