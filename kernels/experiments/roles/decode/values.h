// The two values warpgroups: O += P V, half of the columns each (64 rows x 512 float32 columns fill two warpgroups' registers).
//
// 1. Waits for a block's P; rescales O where the maximum has moved (seldom: see scores.h).
// 2. O += P V, four products of 64 x 256 x 16 with both operands in shared memory; V is the KV block itself, its rows the
//    product's depth.
// 3. Frees the block and P, together with the other warpgroup; the left one has the next item loaded in their place (loader.h).
// 4. After a tile's last block writes out and log-sum-exp, or the partial result and its arrival at the merge. Meanwhile the
//    next tile's queries are loaded and scored.
#pragma once
#include "loader.h"
#include "merge.h"

namespace flashmla::decode {

template <typename T, int half, typename Loader>
struct Values {
  const MlaDecodeParams& p;
  SharedStorage& sh;
  Loader loader;   // of the left half
  int used = 0, works_done = 0;
  const int warp = (threadIdx.x >> 5) & 3, lane = threadIdx.x & 31;
  Cursor<kStages> ring;
#ifdef MLA_PROFILE
  uint32_t acc[8];
  uint32_t then;
#define VPROF(i) { const uint32_t now = clock(); acc[i] += now - then; then = now; }
#else
#define VPROF(i)
#endif

  // Rows past the sequence's end hold anything, NaN too: zero them in this half before 0 * NaN is added up.
  __device__ __forceinline__ void zero_tail(int valid) {
    for (int i = threadIdx.x & 127; i < (kBlockTokens - valid) * 32; i += 128) {
      const int row = valid + (i >> 5), tile = (i >> 3) & 3, chunk = i & 7;
      ptx::store_shared_zero16(ptx::smem_address(sh.ring[ring.slot][half * 4 + tile]) + row * 128 + chunk * 16);
    }
    ptx::fence_proxy_async();
    ptx::bar_sync(half == 0 ? kLeftSync : kRightSync, 128);
  }

  // The ring's item was used: the left half's warps load another in its place.
  __device__ __forceinline__ void refill() {
    if constexpr (half == 0) loader.refill(ring.slot, ring.parity, ++used, works_done);
  }

  __device__ __forceinline__ void issue(float (&o)[128], bool accumulate) {
    using namespace ptx;
    const uint64_t a = descriptor(smem_address(sh.ring[ring.slot][kRopeTile]), 16, 1024);
    const uint64_t v = descriptor(smem_address(sh.ring[ring.slot][half * 4]), kTileBytes, 1024);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) Wgmma<T>::pv_ss(o, a + ((k * 32) >> 4), v + ((k * 2048) >> 4), k > 0 || accumulate);
    wgmma_commit();
  }

  __device__ __forceinline__ void write(const Work& work, float (&o)[128], const float (&sum)[2], const float (&top)[2]) {
    const float inv[2] = {sum[0] > 0.f ? 1.f / sum[0] : 0.f, sum[1] > 0.f ? 1.f / sum[1] : 0.f};
#pragma unroll
    for (int i = 0; i < 128; ++i) o[i] *= inv[(i >> 1) & 1];
    const bool whole = work.parts == 1;
    const int64_t first = whole ? work.out_row : partial_slot(blockIdx.x, work.part == 0) * kRows;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = warp * 16 + r * 8 + (lane >> 2);
      if (row >= work.rows) continue;
      const int64_t index = (first + row) * kValueWidth + half * 256 + (lane & 3) * 2;
      if (whole && p.out_dtype != FLASHMLA_F32) {
        const bool bf16 = p.out_dtype == FLASHMLA_BF16;
        uint16_t* out = static_cast<uint16_t*>(p.out) + index;
#pragma unroll
        for (int j = 0; j < 32; ++j) {
          const float lo = o[j * 4 + r * 2], hi = o[j * 4 + r * 2 + 1];
          *reinterpret_cast<uint32_t*>(out + j * 8) = bf16 ? Bf16::pack(lo, hi) : F16::pack(lo, hi);
        }
      } else {
        float* out = (whole ? static_cast<float*>(p.out) : p.partial_out) + index;
#pragma unroll
        for (int j = 0; j < 32; ++j) *reinterpret_cast<float2*>(out + j * 8) = make_float2(o[j * 4 + r * 2], o[j * 4 + r * 2 + 1]);
      }
      if (half == 0 && (lane & 3) == 0) {
        const float lse2 = sum[r] > 0.f ? top[r] + log2f(sum[r]) : -INFINITY;
        (whole ? p.lse : p.partial_lse)[first + row] = whole ? lse2 * kLn2 : lse2;
      }
    }
  }

  __device__ __forceinline__ void tile(const Work& work) {
    using namespace ptx;
    const int blocks = __shfl_sync(0xffffffffu, work.blocks, 0);  // uniform, for the compiler
    float o[128], sum[2], top[2];
    refill();
    ring.next();  // the queries
#pragma unroll 1
    for (int j = 0; j < blocks; ++j) {
      const bool last = j + 1 == blocks;
      VPROF(0)
      wait(sh.p_full[ring.slot], ring.parity);
      wait(sh.full[ring.slot], ring.parity);
      VPROF(1)
      if (j > 0) {
        const float s0 = sh.scale[ring.slot][warp * 16 + (lane >> 2)], s1 = sh.scale[ring.slot][warp * 16 + (lane >> 2) + 8];
        if (__any_sync(0xffffffffu, s0 != 1.f || s1 != 1.f)) {
#pragma unroll
          for (int i = 0; i < 128; ++i) o[i] *= (i & 2) ? s1 : s0;
        }
      }
      if (last) {
        const int valid = work.seq_len - (work.first_block + j) * kBlockTokens;
        if (valid < kBlockTokens) zero_tail(valid);
      }
      VPROF(2)
      issue(o, j > 0);
      wgmma_wait<0>();
      pin(o);
      VPROF(3)
      if (last) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          sum[r] = sh.sum[warp * 16 + r * 8 + (lane >> 2)];
          top[r] = sh.top[warp * 16 + r * 8 + (lane >> 2)];
        }
        arrive_warp(sh.sums_free);
      }
      arrive_warp(sh.empty[ring.slot]);
      refill();
      ring.next();
    }
    write(work, o, sum, top);
    VPROF(4)
  }

  __device__ __forceinline__ void run() {
    Cursor<kWorks> works;
    int merges = 0;
    if constexpr (half == 0) loader.start();
#ifdef MLA_PROFILE
    for (int i = 0; i < 8; ++i) acc[i] = 0;
    then = clock();
#endif
    while (true) {
      wait(sh.work_full[works.slot], works.parity);
      const Work& work = sh.works[works.slot];
      if (work.blocks == 0) break;
      tile(work);
      if (work.parts > 1) merge_arrive(p, sh, work, merges++);
      works.next();
      ++works_done;
    }
    VPROF(5)
    for (int i = 0; i < merges; ++i) merge(p, sh, i);
#ifdef MLA_PROFILE
    if (threadIdx.x % 32 == 0)
      for (int i = 0; i < 8; ++i) p.partial_lse[blockIdx.x * 128 + 32 + half * 32 + warp * 8 + i] = acc[i];
#endif
  }
};

}  // namespace flashmla::decode
