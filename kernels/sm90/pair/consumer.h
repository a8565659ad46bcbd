// The two consumer warpgroups of a block. The pair's blocks c = 0, 1 hold output columns [256 c, 256 c + 256) of the same 128 rows,
// warpgroup w of each those of rows [64 w, 64 w + 64). A block loads its half of the columns only: those of its values, and it sums
// the scores over them and half of the rotary ones. So each KV byte is read by one block, and a step of 64 tokens needs two exchanges
// between threads of the same place in both blocks:
//
// 1. S_c = Q_c K_c^T, this block's share of the scores. A thread holds 16 of two rows; block c finishes row c of them.
// 2. The other row's 16 go to the other block, its 16 of this row come back: S = S_0 + S_1.
// 3. Softmax of this row; P and its factor go to the other block, and those of the other row come back.
// 4. O = O f + P V_c.
// The next step's scores are issued right after 1, so the tensor cores have them to work on during 2 and 3, and 4 during the next 2.
// A thread's mailboxes hold one message each, and each kind of message has its own barrier: what comes next on it is sent only after
// an answer to the last one, so messages that overtake each other on the way do no harm.
#pragma once
#include "config.h"

namespace flashmla::pair {

// The maximum moves only when it would grow by 2^8 or more: the sums are seldom rescaled, and P's rounding is relative.
constexpr float kLazyLog2 = 8.f;

template <typename T>
struct Consumer {
  const MlaDecodeParams& p;
  SharedStorage& sh;
  const int rank, wg, warp, lane;  // warp of the warpgroup
  uint32_t there;        // what to add to a shared address of this block for the other's
  int stage = 0;         // of the next scores
  uint32_t parity = 0;   // of its barrier
  int value_stage = 0;   // of the next product with V
  uint32_t mail_parity = 0, p_parity = 0, ends_parity = 0;

  __device__ Consumer(const MlaDecodeParams& p_, SharedStorage& sh_, int rank_, int wg_)
      : p(p_), sh(sh_), rank(rank_), wg(wg_), warp((threadIdx.x >> 5) & 3), lane(threadIdx.x & 31) {
    there = ptx::address_in(ptx::smem_address(&sh), rank ^ 1) - ptx::smem_address(&sh);
  }

  __device__ __forceinline__ void release(uint64_t& bar) {
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(ptx::smem_address(&bar));
  }
  // Arms this warp's mailbox for a message of so many bytes a thread.
  __device__ __forceinline__ void expect(uint64_t& bar, int bytes) {
    __syncwarp();
    if (lane == 0) ptx::mbarrier_expect_tx(ptx::smem_address(&bar), bytes * 32);
  }

  __device__ __forceinline__ void issue_qk(float (&s)[32], const uint32_t (&q_rope)[2][4]) {
    using namespace ptx;
    const uint64_t q = descriptor(smem_address(sh.q[wg]), 16, 1024);
    const uint64_t k = descriptor(smem_address(sh.kv[stage]), 16, 1024);
    mbarrier_wait(smem_address(&sh.full[stage]), parity);
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 2; ++i) Wgmma<T>::qk_rs(s, q_rope[i], k + ((kHalfTiles * kTileBytes + i * 32) >> 4) + rank * 4, i != 0);
#pragma unroll
    for (int i = 0; i < 4 * kHalfTiles; ++i) {
      const int offset = ((i / 4) * kTileBytes + (i % 4) * 32) >> 4;
      Wgmma<T>::qk_ss(s, q + offset, k + offset, 1);
    }
    wgmma_commit();
  }

  __device__ __forceinline__ void issue_pv(float (&o)[128], const uint32_t (&a)[4][4], int at) {
    using namespace ptx;
    const uint64_t v = descriptor(smem_address(sh.kv[at]), kTileBytes, 1024);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) Wgmma<T>::pv_rs(o, a[k], v + ((k * 2048) >> 4), 1);
    wgmma_commit();
  }

  // Rows past the sequence's end hold anything, NaN too: zero them before 0 * NaN is added up. Each warpgroup does it for itself.
  __device__ __forceinline__ void zero_tail(int at, int valid) {
    if (valid >= kBlockTokens) return;
    const int thread = threadIdx.x & 127;
    for (int i = thread; i < (kBlockTokens - valid) * 32; i += 128) {
      const int row = valid + (i >> 5), tile = (i >> 3) & 3, chunk = i & 7;
      ptx::store_shared_zero16(ptx::smem_address(sh.kv[at][tile]) + row * 128 + chunk * 16);
    }
    ptx::fence_proxy_async();
    ptx::bar_sync(wg == 0 ? kZero0 : kZero1, 128);
  }

  // One segment: leaves O (not normalized), and the maximum m and the sum l of the thread's two rows.
  __device__ __forceinline__ void run(const volatile Note& note, float (&o)[128], float (&m)[2], float (&l)[2]) {
    using namespace ptx;
    const float scale_log2 = p.softmax_scale * kLog2E;
    const int lo = note.lo, blocks = note.hi - lo, mine = threadIdx.x >> 5;
    uint32_t q_rope[2][4];
    {
      const int row = warp * 16 + (lane & 15);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int chunk = (rank * 2 + i) * 2 + (lane >> 4);
        ldmatrix_x4(q_rope[i], smem_address(sh.q[wg][kHalfTiles]) + row * 128 + ((chunk ^ (row & 7)) << 4));
      }
    }
    // From this block on some row of the warpgroup may not see all tokens.
    const int row0 = note.first_row + wg * 64;
    const int unmasked = unsigned(max(min(note.seq_len - note.s_q + 1 + int(unsigned(row0) / unsigned(p.h_q)), note.seq_len), 0)) / unsigned(kBlockTokens);

    float s[32], own[16], top = -INFINITY, sum = 0.f, factor = 1.f, scale[2];
    uint32_t a[4][4], packed[8];
    // This block's share of the scores: the other row's to the other block.
    auto send_scores = [&] {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float other[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int at = (i * 2 + (c >> 1)) * 4 + (c & 1);
          own[i * 4 + c] = rank == 0 ? s[at] : s[at + 2];
          other[c] = rank == 0 ? s[at + 2] : s[at];
        }
        store_async(there + smem_address(&sh.scores[i][threadIdx.x]), there + smem_address(&sh.scores_full[mine]),
                    __float_as_uint(other[0]), __float_as_uint(other[1]), __float_as_uint(other[2]), __float_as_uint(other[3]));
      }
      expect(sh.scores_full[mine], 64);
    };
    // P and the factor of both rows.
    auto take_p = [&] {
      mbarrier_wait(smem_address(&sh.p_full[mine]), p_parity);
      p_parity ^= 1;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint4 got = sh.p[h][threadIdx.x];
        const uint32_t other[4] = {got.x, got.y, got.z, got.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          // Tokens 8 (4 h + i) ...: an even eight is the first half of a step of 16.
          const int k = h * 2 + (i >> 1), half = (i & 1) * 2;
          a[k][half] = rank == 0 ? packed[h * 4 + i] : other[i];
          a[k][half + 1] = rank == 0 ? other[i] : packed[h * 4 + i];
        }
      }
      const float got = sh.factor[threadIdx.x];
      scale[0] = rank == 0 ? factor : got;
      scale[1] = rank == 0 ? got : factor;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(a[k][i])::"memory");
      }
    };
    auto add_values = [&] {
      if (__builtin_expect(!__all_sync(0xffffffffu, scale[0] == 1.f && scale[1] == 1.f), 0)) {
#pragma unroll
        for (int i = 0; i < 128; ++i) o[i] *= scale[(i >> 1) & 1];
      }
      issue_pv(o, a, value_stage);
    };

    issue_qk(s, q_rope);
#pragma unroll
    for (int i = 0; i < 128; ++i) o[i] = 0.f;
    wgmma_wait<0>();
    pin(s);
    send_scores();
#pragma unroll 1
    for (int j = 0;;) {
      const bool last = j + 1 == blocks, partly = lo + j >= unmasked;
      if (last) release(sh.q_empty);  // the queries are read for the last time
      mbarrier_wait(smem_address(&sh.scores_full[mine]), mail_parity);
      mail_parity ^= 1;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4 got = sh.scores[i][threadIdx.x];
        own[i * 4] += got.x;
        own[i * 4 + 1] += got.y;
        own[i * 4 + 2] += got.z;
        own[i * 4 + 3] += got.w;
      }
      if (__builtin_expect(partly, 0)) {
        // Rows of the tile past the last query are masked like it.
        const int row = note.first_row + wg * 64 + warp * 16 + (lane >> 2) + rank * 8;
        const int limit = min(note.seq_len - note.s_q + 1 + int(unsigned(row) / unsigned(p.h_q)), note.seq_len) - (lo + j) * kBlockTokens;
#pragma unroll
        for (int i = 0; i < 16; ++i) {
          if ((i >> 1) * 8 + (lane & 3) * 2 + (i & 1) >= limit) own[i] = -INFINITY;
        }
      }
      float most[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) most[i] = fmaxf(fmaxf(own[i], own[i + 4]), fmaxf(own[i + 8], own[i + 12]));
      most[0] = fmaxf(fmaxf(most[0], most[1]), fmaxf(most[2], most[3]));
      most[0] = fmaxf(most[0], __shfl_xor_sync(0xffffffffu, most[0], 1));
      most[0] = fmaxf(most[0], __shfl_xor_sync(0xffffffffu, most[0], 2)) * scale_log2;
      const float next = most[0] > top + kLazyLog2 ? most[0] : top;
      const float base = next == -INFINITY ? 0.f : next;
      factor = exp2_approx(top - base);
      top = next;
      sum *= factor;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int i = h * 4; i < h * 4 + 4; ++i) {
          const float x = exp2_approx(__fmaf_rn(own[i * 2], scale_log2, -base)), y = exp2_approx(__fmaf_rn(own[i * 2 + 1], scale_log2, -base));
          sum += x + y;
          packed[i] = T::pack(x, y);
        }
        store_async(there + smem_address(&sh.p[h][threadIdx.x]), there + smem_address(&sh.p_full[mine]), packed[h * 4], packed[h * 4 + 1],
                    packed[h * 4 + 2], packed[h * 4 + 3]);
      }
      store_async(there + smem_address(&sh.factor[threadIdx.x]), there + smem_address(&sh.p_full[mine]), __float_as_uint(factor));
      expect(sh.p_full[mine], 36);
      wgmma_wait<0>();  // the product with the last step's values
      pin(o);
      if (j > 0) {
        release(sh.empty[value_stage]);
        if (++value_stage == kStages) value_stage = 0;
      }
      if (__builtin_expect(partly, 0)) zero_tail(value_stage, note.seq_len - (lo + j) * kBlockTokens);
      if (last) break;
      ++j;
      issue_qk(s, q_rope);  // while P is on its way
      take_p();
      wgmma_wait<0>();
      pin(s);
      send_scores();
      add_values();  // while the scores are on their way
    }
    take_p();
    add_values();
    // The rows' maxima and sums, for both blocks.
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const int row = mine * 8 + (lane >> 2);
    if ((lane & 3) == 0) {
      store_async(there + smem_address(&sh.ends[row]), there + smem_address(&sh.ends_full[mine]), __float_as_uint(top), __float_as_uint(sum));
    }
    expect(sh.ends_full[mine], 2);
    wgmma_wait<0>();
    pin(o);
    release(sh.empty[value_stage]);
    if (++value_stage == kStages) value_stage = 0;
    mbarrier_wait(smem_address(&sh.ends_full[mine]), ends_parity);
    ends_parity ^= 1;
    const float2 other = sh.ends[row];
    m[0] = rank == 0 ? top : other.x;
    m[1] = rank == 0 ? other.x : top;
    l[0] = rank == 0 ? sum : other.y;
    l[1] = rank == 0 ? other.y : sum;
  }
};

}  // namespace flashmla::pair
