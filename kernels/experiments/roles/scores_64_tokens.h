// The scores warpgroup: S = Q K^T, online softmax, P to shared memory.
//
// 1. Takes a row tile's Q from the ring into registers: there it costs no shared-memory reads (with both operands in shared memory
//    a 64 x 64 product reads as long as it computes). Two of the nine tiles stay in shared memory for want of registers.
// 2. For each KV block: S, 36 products of 64 x 64 x 16. While the tensor cores are at it, refills the ring (loader.h).
// 3. Softmax. The maximum that P is relative to moves only when it would grow by 2^8 or more: until then the values
//    warpgroups have nothing to rescale, and P's rounding is relative, so nothing is lost.
// 4. P takes the place of the block's rotary tile; with it go the factor for what was summed before and, after the last
//    block, the row sums. While the values warpgroups work on P, the next S is computed.
#pragma once
#include "config.h"

namespace flashmla::decode {

constexpr float kLazyLog2 = 8.f;
#ifndef MLA_GATE
#define MLA_GATE 3
#endif
constexpr int kGate = MLA_GATE;  // 0: before the scores, 1: after the left half, 2: after the right one, 3: after all

template <typename T>
struct Scores {
  const MlaDecodeParams& p;
  SharedStorage& sh;
  const CUtensorMap* map_q;
  Cursor<kStages> ring;
  Cursor<kRopes> ropes;
#ifdef MLA_PROFILE
  uint32_t acc[8];
  uint32_t last;
#define PROF(i) { const uint32_t now = clock(); acc[i] += now - last; last = now; }
#else
#define PROF(i)
#endif
  uint32_t q[kQueryTiles * 4][4];  // the 16 x 16 fragments of this warp's 16 rows

  static __device__ __forceinline__ int lane() { return threadIdx.x & 31; }
  static __device__ __forceinline__ int warp() { return (threadIdx.x >> 5) & 3; }
  static __device__ __forceinline__ int first_row() { return warp() * 16 + (lane() >> 2); }

  __device__ __forceinline__ void load_queries() {
    using namespace ptx;
    const int row = warp() * 16 + (lane() & 15);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      wait(sh.full[ring.slot][half], ring.parity);
#pragma unroll
      for (int k = half * 16; k < (half == 0 ? 16 : kQueryTiles * 4); ++k) {
        const int chunk = (k & 3) * 2 + (lane() >> 4);
        ldmatrix_x4(q[k], smem_address(sh.ring[ring.slot][k >> 2]) + row * 128 + ((chunk ^ (row & 7)) << 4));
      }
      arrive_warp(sh.empty[ring.slot][half]);  // for the values warpgroups, which have nothing to do with queries
    }
    ring.next();
  }

  // Tells the values of a P that is in shared memory.
  __device__ __forceinline__ void signal(uint64_t*& due) {
    if (due != nullptr && lane() == 0) arrive(*due);
    due = nullptr;
  }
  // Waits for loads; a P that is due goes out at stage kGate of the scores, or when there is waiting to do.
  __device__ __forceinline__ void wait_loaded(uint64_t& bar, uint32_t parity, uint64_t*& due, int at) {
    if (due != nullptr && (at >= kGate || !ptx::mbarrier_test_wait(ptx::smem_address(&bar), parity))) signal(due);
    wait(bar, parity);
  }

  // s [64 rows, 64 tokens] = Q K^T of the ring's block. `due`: the barrier of the P before, which is held back a while so that its
  // product with V fills the tensor cores during this block's softmax.
  __device__ __forceinline__ void issue(float (&s)[32], uint64_t* due) {
    using namespace ptx;
    const uint64_t k_desc = descriptor(smem_address(sh.ring[ring.slot]), 16, 1024);
    const uint64_t q_desc = descriptor(smem_address(sh.q), 16, 1024);
    const uint64_t rope_desc = descriptor(smem_address(sh.rope[ropes.slot]), 16, 1024);
#pragma unroll
    for (int t = 0; t < 2 * kHalfTiles; ++t) {
      if (t % kHalfTiles == 0) {
        wait_loaded(sh.full[ring.slot][t / kHalfTiles], ring.parity, due, t / kHalfTiles);
        wgmma_fence();
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const uint64_t b = k_desc + ((t * kTileBytes + k * 32) >> 4);
        if (t < kQueryTiles) {
          Wgmma<T>::qk_rs(s, q[(t < kQueryTiles ? t : 0) * 4 + k], b, t > 0 || k > 0);
        } else {
          Wgmma<T>::qk_ss(s, q_desc + ((k * 32) >> 4), b, 1);
        }
      }
    }
    // Last, since it is loaded last: its place is the next to last P's.
    wait_loaded(sh.rope_full[ropes.slot], ropes.parity, due, 2);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) Wgmma<T>::qk_ss(s, q_desc + ((kTileBytes + k * 32) >> 4), rope_desc + ((k * 32) >> 4), 1);
    wgmma_commit();
    signal(due);
  }

  // S becomes P, not normalized; this thread's rows are g and g + 8 of the warp's 16.
  __device__ __forceinline__ void softmax(float (&s)[32], const int (&limit)[2], int first_token, float scale_log2, float (&m)[2],
                                          float (&l)[2], float (&scale)[2]) {
    if (__any_sync(0xffffffffu, first_token + kBlockTokens > min(limit[0], limit[1]))) {
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const int token = first_token + (i >> 2) * 8 + (lane() & 3) * 2 + (i & 1);
        if (token >= limit[(i >> 1) & 1]) s[i] = -INFINITY;
      }
    }
    float top[2], base[2], sum[2][2] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      top[r] = fmaxf(s[r * 2], s[r * 2 + 1]);
#pragma unroll
      for (int j = 1; j < 8; ++j) top[r] = fmaxf(top[r], fmaxf(s[j * 4 + r * 2], s[j * 4 + r * 2 + 1]));
    }
#pragma unroll
    for (int d = 1; d < 4; d *= 2) {
#pragma unroll
      for (int r = 0; r < 2; ++r) top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], d));
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float next = top[r] * scale_log2 > m[r] + kLazyLog2 ? top[r] * scale_log2 : m[r];
      base[r] = next == -INFINITY ? 0.f : next;
      scale[r] = exp2_approx(m[r] - base[r]);
      m[r] = next;
    }
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int r = (i >> 1) & 1;
      s[i] = exp2_approx(__fmaf_rn(s[i], scale_log2, -base[r]));
      sum[r][i & 1] += s[i];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) l[r] = l[r] * scale[r] + (sum[r][0] + sum[r][1]);
  }

  __device__ __forceinline__ void write_p(const float (&s)[32], const float (&scale)[2]) {
    using namespace ptx;
    const int row = warp() * 16 + (lane() & 15);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      uint32_t pr[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) pr[i] = T::pack(s[k * 8 + i * 2], s[k * 8 + i * 2 + 1]);
      const int chunk = k * 2 + (lane() >> 4);
      stmatrix_x4(smem_address(sh.rope[ropes.slot]) + row * 128 + ((chunk ^ (row & 7)) << 4), pr);
    }
    if ((lane() & 3) == 0) {
      sh.scale[ropes.slot][first_row()] = scale[0];
      sh.scale[ropes.slot][first_row() + 8] = scale[1];
    }
  }

  // The tiles of Q that stay in shared memory. One thread, once the scores before are done.
  __device__ __forceinline__ void load_query_tail(const Work& work) {
    const uint32_t bar = ptx::smem_address(&sh.q_full);
    ptx::mbarrier_expect_tx(bar, (kTiles - kQueryTiles) * kTileBytes);
    for (int t = kQueryTiles; t < kTiles; ++t)
      ptx::tma_load_2d(ptx::smem_address(sh.q[t - kQueryTiles]), map_q, bar, t * kTileCols, int(work.out_row));
  }

  __device__ __forceinline__ void tile(const Work& work, uint32_t q_parity) {
    using namespace ptx;
    int left = __shfl_sync(0xffffffffu, work.blocks, 0);  // uniform, for the compiler
    int first_token = work.first_block * kBlockTokens, limit[2];
#pragma unroll
    for (int r = 0; r < 2; ++r)  // rows past the last query are masked like it
      limit[r] = min(work.visible + (work.first_row + first_row() + r * 8) / p.h_q, work.seq_len);
    const float scale_log2 = p.softmax_scale * kLog2E;
    float s[32], m[2] = {-INFINITY, -INFINITY}, l[2] = {0.f, 0.f}, scale[2];
    load_queries();
    wait(sh.q_full, q_parity);
    issue(s, nullptr);
#pragma unroll 1
    while (true) {
      PROF(0)
      wgmma_wait<0>();
      pin(s);
      PROF(1)
      softmax(s, limit, first_token, scale_log2, m, l, scale);
      first_token += kBlockTokens;
      PROF(2)
      write_p(s, scale);
      if (--left == 0) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          l[r] += __shfl_xor_sync(0xffffffffu, l[r], 1);
          l[r] += __shfl_xor_sync(0xffffffffu, l[r], 2);
          if ((lane() & 3) == 0) {
            sh.sum[ropes.slot][first_row() + r * 8] = l[r];
            sh.top[ropes.slot][first_row() + r * 8] = m[r];
          }
        }
      }
      fence_proxy_async();
      __syncwarp();
      uint64_t* due = &sh.p_full[ropes.slot];
      ring.next();
      ropes.next();
      PROF(3)
      if (left == 0) {
        signal(due);
        break;
      }
      issue(s, due);
      PROF(4)
    }
  }

  __device__ __forceinline__ void run() {
    Cursor<kWorks> works;
    uint32_t q_parity = 0;
#ifdef MLA_PROFILE
    for (int i = 0; i < 8; ++i) acc[i] = 0;
    last = clock();
#endif
    while (true) {
      wait(sh.work_full[works.slot], works.parity);
      const Work& work = sh.works[works.slot];
      if (work.blocks == 0) break;
      ptx::bar_sync(kScoresSync, 128);  // nobody still multiplies with the last tile's Q
      if (threadIdx.x % 128 == 0) load_query_tail(work);
      PROF(5)
      tile(work, q_parity);
      q_parity ^= 1;
      works.next();
      PROF(6)
    }
#ifdef MLA_PROFILE
    if (threadIdx.x % 32 == 0)
      for (int i = 0; i < 8; ++i) p.partial_lse[blockIdx.x * 128 + warp() * 8 + i] = acc[i];
#endif
  }
};

}  // namespace flashmla::decode
