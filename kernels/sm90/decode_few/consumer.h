// The two consumer warpgroups: each takes blocks of 64 tokens from scores to output and knows nothing of the other until the segment ends. Of
// up to 16 query rows they take every other block each; of more they have 16 rows each, and both take all blocks.
//
// Products are turned around, so that tokens and value columns are their high side and the few query rows their narrow one:
//   1. S^T [64 tokens, 16] = K [64, 576] Q^T
//   2. P^T = 2^(S^T - m); the maximum m of a row is that of a column here, over lanes and warps
//   3. O^T [512, 16] += V^T [512, 64] P^T, as eight products of 64 value columns, the warpgroup's own half of the columns first
// A query row costs what it is: a tile of 64 would be three quarters idle, and hold four times the accumulators.
#pragma once
#include "../decode/consumer.h"
#include "config.h"

namespace flashmla::decode_few {

// A thread's columns c = 0 .. 3 are query rows 2 * (lane & 3) + (c & 1) + 8 * (c >> 1); value i of a product is of column column_of(i).
__device__ constexpr int column_of(int i) { return (i >> 2) * 2 + (i & 1); }
__device__ __forceinline__ int row_of_column(int c, int lane) { return 2 * (lane & 3) + (c & 1) + 8 * (c >> 1); }

struct Rows {
  int limit[kColumns];  // tokens that they may see
  bool live[kColumns];  // whether the sequence has that row
  int least;            // fewest tokens of any row: blocks below it need no mask
};

template <typename T, int kTileRows>
struct Consumer {
  static constexpr bool kByRows = by_rows(kTileRows);
  using Storage = SharedStorage<kTileRows>;
  const MlaDecodeParams& p;
  Storage& sh;
  const int wg, warp, lane, barrier;
  int next_buffer = 0;    // where they share the rows
  uint32_t parities = 0;  // of what fills the buffer, or the buffers, a bit each
  uint32_t q_parity = 0, turn = 0;
  int segment = 0;

  __device__ Consumer(const MlaDecodeParams& p_, Storage& sh_, int wg_)
      : p(p_), sh(sh_), wg(wg_), warp((threadIdx.x >> 5) & 3), lane(threadIdx.x & 31), barrier(kWarpgroup0 + wg_) {}

  __device__ __forceinline__ void release(uint64_t& bar) {
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(ptx::smem_address(&bar));
  }
  __device__ __forceinline__ void wait_unit(int unit) {
    ptx::mbarrier_wait(ptx::smem_address(&sh.full[buffer()][unit]), kByRows ? (parities >> next_buffer) & 1 : parities);
  }
  __device__ __forceinline__ int buffer() const { return kByRows ? next_buffer : wg; }
  // The half of a buffer that comes and is freed first, where halves are 0 and 1.
  __device__ __forceinline__ int first_half() const { return kByRows ? 0 : wg; }
  __device__ __forceinline__ const decode::Note& next_note() {
    ptx::mbarrier_wait(ptx::smem_address(&sh.note_full[segment & 1]), (segment >> 1) & 1);
    return sh.note[segment & 1];
  }
  __device__ __forceinline__ void wait_queries() {
    ptx::mbarrier_wait(ptx::smem_address(&sh.q_full), q_parity);
    q_parity ^= 1;
  }

  // S^T = K Q^T, by two sums in turn: a product waits for the one before it in the same sum.
  __device__ __forceinline__ void scores(float (&s)[8]) {
    using namespace ptx;
    const uint64_t q_desc = descriptor(__shfl_sync(0xffffffffu, smem_address(sh.q[0][kByRows ? wg : 0]), 0), 16, 1024);
    const uint64_t k_desc = descriptor(__shfl_sync(0xffffffffu, smem_address(sh.kv[buffer()][0]), 0), 16, 1024);
    constexpr int kQueryBytes = sizeof(sh.q[0]);
    float s2[8];
    wait_unit(decode::unit_of_tile(kRopeTile));
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      wgmma_n16<T, 0>(k & 1 ? s2 : s, k_desc + ((kRopeTile * kTileBytes + k * 32) >> 4), q_desc + ((kRopeTile * kQueryBytes + k * 32) >> 4),
                      k > 1);
    }
    // As the producer loads them.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int first = (half ^ first_half()) * kHalfTiles;
      const uint64_t k_half = k_desc + ((first * kTileBytes) >> 4), q_half = q_desc + ((first * kQueryBytes) >> 4);
#pragma unroll
      for (int t = 0; t < kHalfTiles; ++t) {
        if (t % decode::kUnitTiles == 0) {
          wait_unit(decode::unit_of_tile(first) + t / decode::kUnitTiles);
          wgmma_fence();
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          wgmma_n16<T, 0>(k & 1 ? s2 : s, k_half + ((t * kTileBytes + k * 32) >> 4), q_half + ((t * kQueryBytes + k * 32) >> 4), 1);
        }
      }
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(s);
    pin(s2);
#pragma unroll
    for (int i = 0; i < 8; ++i) s[i] += s2[i];
  }

  // Rows past the sequence's end hold anything, NaN too: zero them before 0 * NaN is added up.
  __device__ __forceinline__ void zero_tail(int valid) {
    if (__builtin_expect(valid >= kBlockTokens, 1)) return;
    for (int i = threadIdx.x & 127; i < (kBlockTokens - valid) * 64; i += 128) {
      const int row = valid + (i >> 6), tile = (i >> 3) & 7, chunk = i & 7;
      ptx::store_shared_zero16(ptx::smem_address(sh.kv[buffer()][tile]) + row * 128 + chunk * 16);
    }
  }

  // P^T of a block's scores relative to the maxima m, to shared memory; `sum` gets what each column adds up to in this thread.
  __device__ __forceinline__ void exponents(const float (&s)[8], const float (&m)[kColumns], float scale_log2, float (&sum)[kColumns]) {
    float e[8], base[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      base[c] = base_of(m[c]);
      sum[c] = 0.f;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      e[i] = exp2_approx(__fmaf_rn(s[i], scale_log2, -base[column_of(i)]));
      sum[column_of(i)] += e[i];
    }
    // Four matrices of 8 rows by 8 tokens: two of rows by two of tokens.
    const uint32_t packed[4] = {T::pack(e[0], e[1]), T::pack(e[2], e[3]), T::pack(e[4], e[5]), T::pack(e[6], e[7])};
    const int row = ((lane >> 4) << 3) + (lane & 7), chunk = warp * 2 + ((lane >> 3) & 1);
    ptx::stmatrix_x4_trans(ptx::smem_address(sh.p[wg][turn]) + row * 128 + ((chunk ^ (row & 7)) << 4), packed);
    ptx::fence_proxy_async();
  }

  // Online softmax of one block's scores: P^T in shared memory, seen by all of the warpgroup. A maximum moves only when it would grow by
  // 2^8 or more, so P is computed as if it stayed, and again in the few blocks where it doesn't.
  __device__ __forceinline__ void softmax(float (&s)[8], const Rows& rows, int first_token, float scale_log2, float (&o)[8][8],
                                          float (&m)[kColumns], float (&l)[kColumns]) {
    if (__builtin_expect(first_token + kBlockTokens > rows.least, 0)) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int token = first_token + warp * 16 + (lane >> 2) + ((i >> 1) & 1) * 8;
        if (token >= rows.limit[column_of(i)]) s[i] = -INFINITY;
      }
    }
    float sum[kColumns];
    exponents(s, m, scale_log2, sum);
    // That a maximum may have to move shows in a thread's sums.
    bool grows = false;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) grows |= !(sum[c] <= float(1 << decode::kLazyLog2)) || m[c] == -INFINITY;
    if (ptx::bar_any(barrier, 128, grows)) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int i = (c >> 1) * 4 + (c & 1);
        float top = fmaxf(s[i], s[i + 2]);
#pragma unroll
        for (int d = 4; d < 32; d <<= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
        if (lane < 4) sh.tops[wg][warp][row_of_column(c, lane)] = top;
      }
      ptx::bar_sync(barrier, 128);
      float factor[kColumns];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int row = row_of_column(c, lane);
        const float most = fmaxf(fmaxf(sh.tops[wg][0][row], sh.tops[wg][1][row]), fmaxf(sh.tops[wg][2][row], sh.tops[wg][3][row])) * scale_log2;
        const bool moves = most > m[c] + decode::kLazyLog2;
        factor[c] = moves ? exp2_approx(m[c] - most) : 1.f;
        if (moves) m[c] = most;
        l[c] *= factor[c];
      }
#pragma unroll
      for (int t = 0; t < 8; ++t) {
#pragma unroll
        for (int i = 0; i < 8; ++i) o[t][i] *= factor[column_of(i)];
      }
      exponents(s, m, scale_log2, sum);
      ptx::bar_sync(barrier, 128);
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) l[c] += sum[c];
  }

  // O^T += V^T P^T; each half of the buffer is free as soon as it has been read.
  __device__ __forceinline__ void values(float (&o)[8][8]) {
    using namespace ptx;
    const uint64_t p_desc = descriptor(__shfl_sync(0xffffffffu, smem_address(sh.p[wg][turn]), 0), 16, 1024);
    const uint64_t v_desc = descriptor(__shfl_sync(0xffffffffu, smem_address(sh.kv[buffer()][0]), 0), kTileBytes, 1024);
    wgmma_fence();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint64_t v_half = v_desc + (((half ^ first_half()) * kHalfTiles * kTileBytes) >> 4);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int t = 0; t < kHalfTiles; ++t) {
          wgmma_n16<T, 1>(o[half * kHalfTiles + t], v_half + ((t * kTileBytes + k * 2048) >> 4), p_desc + ((k * 32) >> 4), 1);
        }
      }
      wgmma_commit();
    }
    wgmma_wait<1>();
    release(sh.empty[buffer()][decode::kLeft + first_half()]);
    wgmma_wait<0>();
    release(sh.empty[buffer()][decode::kRight - first_half()]);
#pragma unroll
    for (int t = 0; t < 8; ++t) pin(o[t]);
  }

  // The warpgroup's blocks of a segment: leaves O^T (not normalized), the maxima m and this thread's shares l of the sums. o[0 .. 3] are
  // the first half of the value columns, or the warpgroup's own one where they share the blocks.
  __device__ __forceinline__ void run(const Segment& seg, const Rows& rows, float (&o)[8][8], float (&m)[kColumns], float (&l)[kColumns]) {
    const float scale_log2 = p.softmax_scale * kLog2E;
#pragma unroll
    for (int t = 0; t < 8; ++t) {
#pragma unroll
      for (int i = 0; i < 8; ++i) o[t][i] = 0.f;
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      m[c] = rows.live[c] ? -INFINITY : INFINITY;  // P of a row that isn't there is 0
      l[c] = 0.f;
    }
    wait_queries();
    if (threadIdx.x == 0) trace_segment(segment, kTraceQueries);
    next_buffer = 0;
    const BlockOrder order = Storage::order(p, seg, segment);
#pragma unroll 1
    for (int n = kByRows ? 0 : wg; n < seg.hi - seg.lo; n += kByRows ? 1 : 2) {
      const int first_token = (seg.lo + order(n)) * kBlockTokens;
      float s[8];
      scores(s);
      release(sh.empty[buffer()][decode::kRope]);
      if (n == 0 && threadIdx.x == 0) trace_segment(segment, kTraceScores);
      zero_tail(seg.shape.seq_len - first_token);
      softmax(s, rows, first_token, scale_log2, o, m, l);
      values(o);
      if (n == 0 && threadIdx.x == 0) trace_segment(segment, kTraceProduct);
      parities ^= kByRows ? 1u << next_buffer : 1u;
      next_buffer ^= 1;
      turn ^= 1;
    }
    release(sh.q_empty);
  }
};

}  // namespace flashmla::decode_few
