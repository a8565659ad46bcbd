// The two consumer warpgroups. Warpgroup w holds output columns [256 w, 256 w + 256) of all 64 rows and computes the scores of
// every other block: even ones (buffer 0, "A") w = 0, odd ones (buffer 1, "B") w = 1.
//
// A pair of blocks, with O = (O_L | O_R):
//   warpgroup 0                                     warpgroup 1
//   1. S0 = Q A^T                                   1. S1 = Q B^T, issued when most of S0 is
//   2. m0 = max(m, rows of S0), P0 = 2^(S0 - m0)    2. takes P0: O_R = O_R 2^(m - m0) + P0 A_R, meanwhile
//   3. gives P0; O_L = O_L 2^(m - m0) + P0 A_L      3. m1 = max(m0, rows of S1), P1 = 2^(S1 - m1), gives P1
//   4. takes P1: O_L = O_L 2^(m0 - m1) + P1 B_L     4. O_R = O_R 2^(m0 - m1) + P1 B_R
//   5. issues the next pair's S0 behind it          5. issues the next pair's S1 behind it
// so that the tensor cores work on 1's scores while 0 is in its softmax, and on P0 A while 1 is in its own. Did both issue their scores at once,
// both would be in their softmax at once.
#pragma once
#include "config.h"

namespace flashmla::decode {

// The maximum moves only when it would grow by 2^8 or more: the sums are seldom rescaled, and P's rounding is relative.
constexpr int kLazyLog2 = 8;
// The odd block's scores may be issued behind those of so many of the even block's nine tiles.
constexpr int kHeadTiles = 6;

struct Rows {
  int limit[2];  // tokens that this thread's two rows (g and g + 8 of the warp's 16) may see
  int least;     // fewest of any row of the tile: blocks below it need no mask
};

template <typename T>
struct Consumer {
  const MlaDecodeParams& p;
  SharedStorage& sh;
  const int wg, warp, lane;  // warp of the warpgroup
  uint32_t parity[2] = {0, 0};  // of full[buffer], flipped once a block
  uint32_t q_parity = 0;
  int segment = 0;

  __device__ Consumer(const MlaDecodeParams& p_, SharedStorage& sh_, int wg_)
      : p(p_), sh(sh_), wg(wg_), warp((threadIdx.x >> 5) & 3), lane(threadIdx.x & 31) {}

  __device__ __forceinline__ void release(uint64_t& bar) {
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(ptx::smem_address(&bar));
  }
  __device__ __forceinline__ void wait_unit(int buffer, int unit, uint32_t par) {
    ptx::mbarrier_wait(ptx::smem_address(&sh.full[buffer][unit]), par);
  }
  __device__ __forceinline__ void wait_half(int buffer, int half, uint32_t par) {
#pragma unroll
    for (int u = 0; u < kHalfUnits; ++u) wait_unit(buffer, half * kHalfUnits + u, par);
  }

  // Where shared memory starts, and a KV tile in it. Shuffled, so that the compiler knows that it is the same for all lanes: descriptors are
  // made of it by the uniform data path then, and not in every lane.
  __device__ __forceinline__ uint32_t shared_base() const { return __shfl_sync(0xffffffffu, ptx::smem_address(sh.q[0]), 0); }
  static __device__ constexpr uint32_t kv_offset(int buffer, int tile) {
    static_assert(offsetof(SharedStorage, q) == 0);
    return uint32_t(offsetof(SharedStorage, kv)) + (buffer * kTiles + tile) * kTileBytes;
  }

  // S = Q K^T of one block: the rotary tile with Q from registers, then 8 tiles as they arrive.
  __device__ __forceinline__ void issue_qk(float (&s)[32], const uint32_t (&q_rope)[4][4], int buffer, uint32_t par) {
    using namespace ptx;
    const uint64_t q_desc = descriptor(shared_base(), 16, 1024), k_desc = descriptor(shared_base() + kv_offset(buffer, 0), 16, 1024);
    wait_unit(buffer, unit_of_tile(kRopeTile), par);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      Wgmma<T>::qk_rs(s, q_rope[k], k_desc + ((kRopeTile * kTileBytes + k * 32) >> 4), k != 0);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int t = buffer == 0 ? i : i ^ 4;  // as the producer loads them
      if (t % kUnitTiles == 0) {
        wait_unit(buffer, unit_of_tile(t), par);
        wgmma_fence();
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int offset = (t * kTileBytes + k * 32) >> 4;
        Wgmma<T>::qk_ss(s, q_desc + offset, k_desc + offset, 1);
      }
      if (buffer == 0 && i + 2 == kHeadTiles) bar_arrive(kScored, 256);
    }
    wgmma_commit();
  }

  // O += P V of one block's half; P from registers or from shared memory.
  __device__ __forceinline__ void issue_pv(float (&o)[128], const uint32_t (&pr)[4][4], int buffer) {
    using namespace ptx;
    const uint64_t v = descriptor(shared_base() + kv_offset(buffer, wg * 4), kTileBytes, 1024);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) Wgmma<T>::pv_rs(o, pr[k], v + ((k * 2048) >> 4), 1);
    wgmma_commit();
  }
  __device__ __forceinline__ void issue_pv(float (&o)[128], const uint8_t* p_tile, int buffer) {
    using namespace ptx;
    const uint64_t v = descriptor(shared_base() + kv_offset(buffer, wg * 4), kTileBytes, 1024);
    const uint64_t a = descriptor(smem_address(p_tile), 16, 1024);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) Wgmma<T>::pv_ss(o, a + ((k * 32) >> 4), v + ((k * 2048) >> 4), 1);
    wgmma_commit();
  }

  // Rows past the sequence's end hold anything, NaN too: zero them in this warpgroup's half before 0 * NaN is added up.
  __device__ __forceinline__ void zero_tail(int buffer, int valid) {
    if (__builtin_expect(valid >= kBlockTokens, 1)) return;
    const int thread = threadIdx.x & 127;
    for (int i = thread; i < (kBlockTokens - valid) * 32; i += 128) {
      const int row = valid + (i >> 5), tile = (i >> 3) & 3, chunk = i & 7;
      ptx::store_shared_zero16(ptx::smem_address(sh.kv[buffer][wg * 4 + tile]) + row * 128 + chunk * 16);
    }
    ptx::fence_proxy_async();
    ptx::bar_sync(wg == 0 ? kZero0 : kZero1, 128);
  }

  // P = 2^(S - m) of a block's scores as products take it; `sum` gets what each row adds up to in this thread.
  __device__ __forceinline__ void exponents(uint32_t (&pr)[4][4], const float (&s)[32], const float (&m)[2], float scale_log2, float (&sum)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float base = base_of(m[r]);
      sum[r] = 0.f;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        float e[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          e[c] = exp2_approx(__fmaf_rn(s[j * 4 + r * 2 + c], scale_log2, -base));
          sum[r] += e[c];
        }
        pr[j >> 1][(j & 1) * 2 + r] = T::pack(e[0], e[1]);
      }
    }
  }

  // Online softmax of one block's scores: P in pr, the new maximum in m, the factor on the past in scale. P is computed as if the maximum
  // stayed. Only where a thread's sum says that one may have to move are the maxima of the rows looked for, and P is computed again.
  __device__ __forceinline__ void softmax(uint32_t (&pr)[4][4], float (&s)[32], const Rows& rows, int first_token, float scale_log2, float (&m)[2],
                                          float (&l)[2], float (&scale)[2]) {
    if (__builtin_expect(first_token + kBlockTokens > rows.least, 0)) {
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const int token = first_token + (i >> 2) * 8 + (lane & 3) * 2 + (i & 1);
        if (token >= rows.limit[(i >> 1) & 1]) s[i] = -INFINITY;
      }
    }
    float sum[2];
    scale[0] = scale[1] = 1.f;
    bool stays = __all_sync(0xffffffffu, m[0] != -INFINITY && m[1] != -INFINITY);
    if (__builtin_expect(stays, 1)) {
      exponents(pr, s, m, scale_log2, sum);
      stays = __all_sync(0xffffffffu, fmaxf(sum[0], sum[1]) <= float(1 << kLazyLog2));
    }
    if (__builtin_expect(!stays, 0)) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float top = -INFINITY;
#pragma unroll
        for (int j = 0; j < 8; ++j) top = fmaxf(top, fmaxf(s[j * 4 + r * 2], s[j * 4 + r * 2 + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2)) * scale_log2;
        const float next = top > m[r] + kLazyLog2 ? top : m[r];
        scale[r] = exp2_approx(m[r] - base_of(next));
        m[r] = next;
      }
      exponents(pr, s, m, scale_log2, sum);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) l[r] = l[r] * scale[r] + sum[r];
  }

  // Gives P and this half step's maxima and factors to the other warpgroup.
  __device__ __forceinline__ void give(uint8_t* p_tile, const uint32_t (&pr)[4][4], float2* step, const float (&m)[2], const float (&scale)[2]) {
    const int row = warp * 16 + (lane & 15);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int chunk = k * 2 + (lane >> 4);
      ptx::stmatrix_x4(ptx::smem_address(p_tile) + row * 128 + ((chunk ^ (row & 7)) << 4), pr[k]);
    }
    if ((lane & 3) == 0) {
#pragma unroll
      for (int r = 0; r < 2; ++r) step[warp * 16 + r * 8 + (lane >> 2)] = make_float2(m[r], scale[r]);
    }
    ptx::fence_proxy_async();
  }
  __device__ __forceinline__ void take(const float2* step, float (&m)[2], float (&scale)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float2 given = step[warp * 16 + r * 8 + (lane >> 2)];
      m[r] = given.x;
      scale[r] = given.y;
    }
  }

  __device__ __forceinline__ void rescale(float (&o)[128], const float (&scale)[2]) {
    if (__builtin_expect(__all_sync(0xffffffffu, scale[0] == 1.f && scale[1] == 1.f), 1)) return;
#pragma unroll
    for (int i = 0; i < 128; ++i) o[i] *= scale[(i >> 1) & 1];
  }

  // The note of the next segment. It stays until the segment after it has ended.
  __device__ __forceinline__ const Note& next_note() {
    ptx::mbarrier_wait(ptx::smem_address(&sh.note_full[segment & 1]), (segment >> 1) & 1);
    return sh.note[segment & 1];
  }
  __device__ __forceinline__ void wait_queries() {
    ptx::mbarrier_wait(ptx::smem_address(&sh.q_full), q_parity);
    q_parity ^= 1;
  }

  // The warpgroup's half of a buffer, and its release.
  __device__ __forceinline__ uint32_t half(int buffer) { return ptx::smem_address(sh.kv[buffer][wg * 4]); }
  __device__ __forceinline__ void release_half(int buffer) { release(sh.empty[buffer][wg == 0 ? kLeft : kRight]); }
  __device__ __forceinline__ void release_last(const Segment& seg) { release_half((seg.hi - seg.lo - 1) & 1); }

  // The buffer with another block's part, when it is there, and its release; both warpgroups.
  __device__ __forceinline__ uint32_t next_part(int buffer) {
    wait_unit(buffer, kPartUnit, buffer == 0 ? parity[0] : parity[1]);
    parity[0] ^= buffer ^ 1;
    parity[1] ^= buffer;
    return ptx::smem_address(sh.kv[buffer][0]);
  }
  __device__ __forceinline__ void release_part(int buffer) {
    ptx::bar_sync(kBothConsumers, kConsumerThreads);
    release_half(buffer);
    if (buffer == wg) release(sh.empty[buffer][kRope]);
  }

  // One segment of one row tile: leaves O (not normalized), the maximum m and this warpgroup's share l of the sum. Its half of the last
  // block is not freed yet: see release_last.
  __device__ __forceinline__ void run(const Segment& seg, const Rows& rows, float (&o)[128], float (&m)[2], float (&l)[2]) {
    using namespace ptx;
    const float scale_log2 = p.softmax_scale * kLog2E;
    const int blocks = seg.hi - seg.lo;
    uint32_t q_rope[4][4], pr[4][4];
    float s[32], scale[2];
#pragma unroll
    for (int i = 0; i < 128; ++i) o[i] = 0.f;
    m[0] = m[1] = -INFINITY;
    l[0] = l[1] = 0.f;

    wait_queries();
    if (threadIdx.x == 0) trace_segment(segment, kTraceQueries);
    {
      const int row = warp * 16 + (lane & 15);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int chunk = k * 2 + (lane >> 4);
        ldmatrix_x4(q_rope[k], smem_address(sh.q[kRopeTile]) + row * 128 + ((chunk ^ (row & 7)) << 4));
      }
    }
    bar_sync(kBothConsumers, 256);  // tile 8 of Q is in everybody's registers: its place is P0's now
    uint8_t* p0 = sh.q[kRopeTile];

    const int pairs = blocks / 2;
    const bool odd = (blocks & 1) != 0;  // a last even block without its partner
    if (wg == 0) {
      bool pending = false;  // the product with the last odd block is under way and its half not yet freed
      auto scores = [&] {
        // Behind that product if the next block is there; else free first, so that more loads are under way.
        if (pending && !mbarrier_test_wait(smem_address(&sh.full[0][unit_of_tile(7)]), parity[0])) {
          wgmma_wait<0>();
          pin(o);
          release(sh.empty[1][kLeft]);
          pending = false;
        }
        issue_qk(s, q_rope, 0, parity[0]);
        wgmma_wait<1>();
        pin(o);
        if (pending) release(sh.empty[1][kLeft]);
      };
      auto even_block = [&](int j, int first_token, bool last) {
        wgmma_wait<0>();
        pin(s);
        if (j == 0 && threadIdx.x == 0) trace_segment(segment, kTraceScores);
        release(sh.empty[0][kRope]);
        softmax(pr, s, rows, first_token, scale_log2, m, l, scale);
        if (j > 0) bar_sync(kP0Free, 256);
        give(p0, pr, sh.steps[0], m, scale);
        bar_arrive(kP0Ready, 256);
        rescale(o, scale);
        zero_tail(0, seg.shape.seq_len - first_token);
        issue_pv(o, pr, 0);
        parity[0] ^= 1;
        wgmma_wait<0>();
        pin(o);
        if (j == 0 && threadIdx.x == 0) trace_segment(segment, kTraceProduct);
        if (!last) release(sh.empty[0][kLeft]);
      };
#pragma unroll 1
      for (int j = 0; j < pairs; ++j) {
        const int first_token = (seg.lo + 2 * j) * kBlockTokens;
        scores();
        if (j > 0) bar_arrive(kP1Free, 256);
        even_block(j, first_token, false);
        bar_sync(kP1Ready, 256);
        take(sh.steps[1], m, scale);
        wait_half(1, 0, parity[1]);
        rescale(o, scale);
        l[0] *= scale[0];
        l[1] *= scale[1];
        zero_tail(1, seg.shape.seq_len - first_token - kBlockTokens);
        issue_pv(o, sh.p1, 1);
        parity[1] ^= 1;
        pending = true;
      }
      if (odd) {
        scores();
        even_block(pairs, (seg.lo + 2 * pairs) * kBlockTokens, true);
      } else {
        wgmma_wait<0>();
        pin(o);
      }
    } else {
      auto even_block = [&](int first_token) {
        bar_sync(kP0Ready, 256);
        take(sh.steps[0], m, scale);
        wait_half(0, 1, parity[0]);
        parity[0] ^= 1;
        rescale(o, scale);
        l[0] *= scale[0];
        l[1] *= scale[1];
        zero_tail(0, seg.shape.seq_len - first_token);
        issue_pv(o, p0, 0);
      };
#pragma unroll 1
      for (int j = 0; j < pairs; ++j) {
        const int first_token = (seg.lo + 2 * j) * kBlockTokens;
        bar_sync(kScored, 256);
        issue_qk(s, q_rope, 1, parity[1]);
        even_block(first_token);
        wgmma_wait<1>();
        pin(s);
        release(sh.empty[1][kRope]);
        softmax(pr, s, rows, first_token + kBlockTokens, scale_log2, m, l, scale);
        if (j > 0) bar_sync(kP1Free, 256);
        give(sh.p1, pr, sh.steps[1], m, scale);
        bar_arrive(kP1Ready, 256);
        wgmma_wait<0>();
        pin(o);
        release(sh.empty[0][kRight]);
        if (j + 1 < pairs || odd) bar_arrive(kP0Free, 256);
        rescale(o, scale);
        zero_tail(1, seg.shape.seq_len - first_token - kBlockTokens);
        issue_pv(o, pr, 1);
        parity[1] ^= 1;
        wgmma_wait<0>();
        pin(o);
        if (j + 1 < pairs || odd) release(sh.empty[1][kRight]);
      }
      if (odd) {
        bar_sync(kScored, 256);
        even_block((seg.lo + 2 * pairs) * kBlockTokens);
        wgmma_wait<0>();
        pin(o);
      }
    }
    // Q and P are read for the last time.
    if (lane == 0) mbarrier_arrive(smem_address(&sh.q_empty));
  }
};

}  // namespace flashmla::decode
