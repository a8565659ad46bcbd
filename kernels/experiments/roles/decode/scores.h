// The scores warpgroup: S = Q K^T, online softmax, P to shared memory.
//
// 1. Takes a row tile's Q from the ring: eight tiles into registers, where they cost no shared-memory reads (with both operands in
//    shared memory a product of few columns reads longer than it computes); the rotary tile moves aside.
// 2. For each KV block, S of its first 32 tokens, their softmax, and the same for the other 32: there are no registers for all 64.
// 3. Softmax. The maximum that P is relative to moves only when it would grow by 2^8 or more: until then the values
//    warpgroups have nothing to rescale, and P's rounding is relative, so nothing is lost.
// 4. P takes the place of the block's rotary tile; with it go the factor for what was summed before and, after the last
//    block, the row sums. The values are told of it when the next scores have begun: their products fill the tensor cores while
//    this warpgroup is in its softmax.
#pragma once
#include "config.h"

namespace flashmla::decode {

constexpr float kLazyLog2 = 8.f;
#ifndef MLA_GATE
#define MLA_GATE 1
#endif
constexpr int kGate = MLA_GATE;  // halves of the next block's scores that are issued before the values are told of a P

template <typename T>
struct Scores {
  const MlaDecodeParams& p;
  SharedStorage& sh;
  Cursor<kStages> ring;
  uint32_t sums_parity = 1;
#ifdef MLA_PROFILE
  uint32_t acc[8];
  uint32_t last;
#define PROF(i) { const uint32_t now = clock(); acc[i] += now - last; last = now; }
#else
#define PROF(i)
#endif
  uint32_t q[(kTiles - 1) * 4][4];  // the 16 x 16 fragments of this warp's 16 rows

  static __device__ __forceinline__ int lane() { return threadIdx.x & 31; }
  static __device__ __forceinline__ int warp() { return (threadIdx.x >> 5) & 3; }
  static __device__ __forceinline__ int first_row() { return warp() * 16 + (lane() >> 2); }

  __device__ __forceinline__ void load_queries() {
    using namespace ptx;
    wait(sh.full[ring.slot], ring.parity);
    const int row = warp() * 16 + (lane() & 15);
#pragma unroll
    for (int k = 0; k < (kTiles - 1) * 4; ++k) {
      const int chunk = (k & 3) * 2 + (lane() >> 4);
      ldmatrix_x4(q[k], smem_address(sh.ring[ring.slot][k >> 2]) + row * 128 + ((chunk ^ (row & 7)) << 4));
    }
    const uint4* from = reinterpret_cast<const uint4*>(sh.ring[ring.slot][kRopeTile]) + (threadIdx.x & 127);
    uint4* to = reinterpret_cast<uint4*>(sh.q_rope) + (threadIdx.x & 127);
#pragma unroll
    for (int i = 0; i < kTileBytes / 16; i += 128) to[i] = from[i];
    fence_proxy_async();
    bar_sync(kScoresSync, 128);
    if (lane() == 0) {  // for the values warpgroups, which have nothing to do with queries, and to keep the phases in step
      arrive(sh.empty[ring.slot]);
      arrive(sh.empty[ring.slot]);
      arrive(sh.p_full[ring.slot]);
    }
    ring.next();
  }

  // s [64 rows, 32 tokens] = Q K^T of a half of the ring's block.
  __device__ __forceinline__ void issue(float (&s)[16], int half) {
    using namespace ptx;
    const uint64_t k_desc = descriptor(smem_address(sh.ring[ring.slot]) + half * kHalfTokens * 128, 16, 1024);
    const uint64_t q_desc = descriptor(smem_address(sh.q_rope), 16, 1024);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < (kTiles - 1) * 4; ++k) Wgmma<T>::qk_rs(s, q[k], k_desc + (((k >> 2) * kTileBytes + (k & 3) * 32) >> 4), k > 0);
#pragma unroll
    for (int k = 0; k < 4; ++k) Wgmma<T>::qk_ss(s, q_desc + ((k * 32) >> 4), k_desc + ((kRopeTile * kTileBytes + k * 32) >> 4), 1);
    wgmma_commit();
  }

  // S becomes P, not normalized; this thread's rows are g and g + 8 of the warp's 16. False: the maximum has not moved.
  __device__ __forceinline__ bool softmax(float (&s)[16], const int (&limit)[2], int first_token, float scale_log2, float (&m)[2],
                                          float (&l)[2], float (&scale)[2]) {
    if (__any_sync(0xffffffffu, first_token + kHalfTokens > min(limit[0], limit[1]))) {
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const int token = first_token + (i >> 2) * 8 + (lane() & 3) * 2 + (i & 1);
        if (token >= limit[(i >> 1) & 1]) s[i] = -INFINITY;
      }
    }
    float top[2], base[2], sum[2][2] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      top[r] = fmaxf(s[r * 2], s[r * 2 + 1]);
#pragma unroll
      for (int j = 1; j < 4; ++j) top[r] = fmaxf(top[r], fmaxf(s[j * 4 + r * 2], s[j * 4 + r * 2 + 1]));
    }
#pragma unroll
    for (int d = 1; d < 4; d *= 2) {
#pragma unroll
      for (int r = 0; r < 2; ++r) top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], d));
    }
    bool moved = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool moves = top[r] * scale_log2 > m[r] + kLazyLog2;
      const float next = moves ? top[r] * scale_log2 : m[r];
      base[r] = next == -INFINITY ? 0.f : next;
      scale[r] = moves ? exp2_approx(m[r] - base[r]) : 1.f;
      m[r] = next;
      moved |= moves;
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int r = (i >> 1) & 1;
      s[i] = exp2_approx(__fmaf_rn(s[i], scale_log2, -base[r]));
      sum[r][i & 1] += s[i];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) l[r] = l[r] * scale[r] + (sum[r][0] + sum[r][1]);
    return moved;
  }

  __device__ __forceinline__ void tile(const Work& work) {
    using namespace ptx;
    int left = __shfl_sync(0xffffffffu, work.blocks, 0);  // uniform, for the compiler
    int first_token = work.first_block * kBlockTokens, limit[2];
#pragma unroll
    for (int r = 0; r < 2; ++r)  // rows past the last query are masked like it
      limit[r] = min(work.visible + (work.first_row + first_row() + r * 8) / p.h_q, work.seq_len);
    const float scale_log2 = p.softmax_scale * kLog2E;
    float s[16], m[2] = {-INFINITY, -INFINITY}, l[2] = {0.f, 0.f};
    uint64_t* due = nullptr;
    auto signal = [&] {
      if (due != nullptr && lane() == 0) arrive(*due);
      due = nullptr;
    };
    load_queries();
#pragma unroll 1
    while (true) {
      float scale[2], factor[2];
      uint32_t first[8];  // P of the first half
      PROF(0)
      if (kGate == 0 || !mbarrier_test_wait(smem_address(&sh.full[ring.slot]), ring.parity)) signal();
      wait(sh.full[ring.slot], ring.parity);
      PROF(1)
      issue(s, 0);
      if (kGate == 1) signal();
      wgmma_wait<0>();
      pin(s);
      PROF(2)
      softmax(s, limit, first_token, scale_log2, m, l, scale);
#pragma unroll
      for (int i = 0; i < 8; ++i) first[i] = T::pack(s[i * 2], s[i * 2 + 1]);
      PROF(3)
      issue(s, 1);
      if (kGate == 2) signal();
      wgmma_wait<0>();
      pin(s);
      PROF(4)
      if (__any_sync(0xffffffffu, softmax(s, limit, first_token + kHalfTokens, scale_log2, m, l, factor))) {
#pragma unroll
        for (int i = 0; i < 8; ++i) first[i] = T::scale(first[i], factor[i & 1]);
        scale[0] *= factor[0];
        scale[1] *= factor[1];
      }
      PROF(5)
      // P to shared memory; its matrices of 8 x 8 are rows g, g + 8 by tokens 0.., 8..
      const int slot = ring.slot, row = warp() * 16 + (lane() & 15);
      const uint32_t tile = smem_address(sh.ring[slot][kRopeTile]) + row * 128;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        uint32_t pr[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) pr[i] = k < 2 ? first[(k & 1) * 4 + i] : T::pack(s[(k & 1) * 8 + i * 2], s[(k & 1) * 8 + i * 2 + 1]);
        stmatrix_x4(tile + (((k * 2 + (lane() >> 4)) ^ (row & 7)) << 4), pr);
      }
      if ((lane() & 3) == 0) {
        sh.scale[slot][first_row()] = scale[0];
        sh.scale[slot][first_row() + 8] = scale[1];
      }
      if (--left == 0) {
        wait(sh.sums_free, sums_parity);
        sums_parity ^= 1;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          l[r] += __shfl_xor_sync(0xffffffffu, l[r], 1);
          l[r] += __shfl_xor_sync(0xffffffffu, l[r], 2);
          if ((lane() & 3) == 0) {
            sh.sum[first_row() + r * 8] = l[r];
            sh.top[first_row() + r * 8] = m[r];
          }
        }
      }
      fence_proxy_async();
      __syncwarp();
      due = &sh.p_full[slot];
      first_token += kBlockTokens;
      ring.next();
      PROF(6)
      if (left == 0) break;
    }
    signal();
  }

  __device__ __forceinline__ void run() {
    Cursor<kWorks> works;
#ifdef MLA_PROFILE
    for (int i = 0; i < 8; ++i) acc[i] = 0;
    last = clock();
#endif
    while (true) {
      wait(sh.work_full[works.slot], works.parity);
      const Work& work = sh.works[works.slot];
      if (work.blocks == 0) break;
      PROF(7)
      tile(work);
      works.next();
      PROF(0)
    }
#ifdef MLA_PROFILE
    if (threadIdx.x % 32 == 0)
      for (int i = 0; i < 8; ++i) p.partial_lse[blockIdx.x * 128 + warp() * 8 + i] = acc[i];
#endif
  }
};

}  // namespace flashmla::decode
