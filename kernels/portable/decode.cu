// Split-KV MLA decode for any NVIDIA GPU since Ampere (PTX of compute_80): correct first, mma.sync, no Hopper instructions.
//
// 1. A block of 4 warps takes 16 query rows of one segment (common/schedule.h) and walks its 64-token blocks in steps of 32.
// 2. The step's 32 KV rows are copied to shared memory (rows past the sequence's end as zeros), padded against bank conflicts.
// 3. Scores: warp w computes columns [8 w, 8 w + 8) of the 16 x 32 scores over all 576 columns; they meet in shared memory.
// 4. Every warp repeats the online softmax of the 16 x 32 scores and multiplies P by its own 128 value columns.
// 5. Whole tiles are written, split ones go to the partial buffers for mla_combine.
#include "../common/combine.h"
#include "../common/schedule.h"

namespace flashmla::portable {

constexpr int kRows = 16, kStep = 32, kWidth = 576, kPad = 8, kStride = kWidth + kPad;

struct SharedStorage {
  uint16_t q[kRows][kStride];
  uint16_t kv[kStep][kStride];
  float scores[kRows][kStep + 1];
};
static_assert(sizeof(SharedStorage) == 58176, "as the manifest says");

template <typename T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
#ifndef FLASHMLA_ON_HOST  // there test/block.h has what is PTX here
template <>
__device__ __forceinline__ void mma<Bf16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma<F16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 x 8 transposed, a lane's row of 16 bytes each: lanes 8 i .. 8 i + 7 have the rows of matrix i.
__device__ __forceinline__ void load_transposed(uint32_t (&d)[4], const uint16_t* row) {
  const uint32_t address = uint32_t(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(address) : "memory");
}
#endif

__device__ __forceinline__ uint32_t pair(const uint16_t* p) { return *reinterpret_cast<const uint32_t*>(p); }

template <typename T>
__device__ void decode(const MlaDecodeParams& p) {
  extern __shared__ uint4 raw[];
  SharedStorage& sh = *reinterpret_cast<SharedStorage*>(raw);
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31, g = lane >> 2, t = lane & 3;
  const int group_worker = blockIdx.x / p.tiles_per_group;
  const int member = blockIdx.x % p.tiles_per_group;
  const Shapes shapes(p, kRows);
  const LinePosition at = locate(p, shapes, group_worker);
  const bool describes = thread == 0 && member == 0;
  if (describes && !p.split_by_tile) p.splits[group_worker].splits = 0;
  SegmentWalk walk(at, group_worker);
  Segment seg;
  const float scale_log2 = p.softmax_scale * kLog2E;
  while (walk.next(at, shapes, seg)) {
    if (describes && seg.lo == 0 && (p.split_by_tile || !seg.whole())) {
      p.splits[split_index(p, seg, group_worker)] = describe_split(p, at, seg, group_worker);
    }
    const int first_row = (seg.group * p.tiles_per_group + member) * kRows, rows = seg.shape.s_q * p.h_q;
    if (first_row >= rows) continue;
    const int64_t query = int64_t(seg.shape.query_start) * p.h_q + first_row;
    __syncthreads();
    for (int i = thread; i < kRows * (kWidth / 8); i += 128) {
      const int r = i / (kWidth / 8), c = i % (kWidth / 8);
      uint4 v = make_uint4(0, 0, 0, 0);
      if (first_row + r < rows) v = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(p.q) + (query + r) * kWidth + c * 8);
      *reinterpret_cast<uint4*>(&sh.q[r][c * 8]) = v;
    }
    float o[16][4] = {};
    float m[2] = {-INFINITY, -INFINITY}, l[2] = {0.f, 0.f};
    int limit[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row + g + 8 * r;
      limit[r] = min(seg.shape.seq_len - seg.shape.s_q + 1 + row / p.h_q, seg.shape.seq_len);
    }
    const int32_t* table = p.block_table + seg.seq * p.block_table_stride;
    const int stop = min(seg.hi * kBlockTokens, seg.shape.seq_len);
    for (int first = seg.lo * kBlockTokens; first < stop; first += kStep) {
      __syncthreads();
      for (int i = thread; i < kStep * (kWidth / 8); i += 128) {
        const int r = i / (kWidth / 8), c = i % (kWidth / 8), token = first + r;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (token < stop) {
          const int64_t page = table[token / p.page_size];
          const int64_t offset = page * p.kv_page_stride + int64_t(token % p.page_size) * p.kv_row_stride;
          v = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(p.kv) + offset + c * 8);
        }
        *reinterpret_cast<uint4*>(&sh.kv[r][c * 8]) = v;
      }
      __syncthreads();
      float s[4] = {};
#pragma unroll 4
      for (int k = 0; k < kWidth; k += 16) {
        const uint32_t a[4] = {pair(&sh.q[g][k + t * 2]), pair(&sh.q[g + 8][k + t * 2]), pair(&sh.q[g][k + 8 + t * 2]),
                               pair(&sh.q[g + 8][k + 8 + t * 2])};
        const uint16_t* b = &sh.kv[warp * 8 + g][k + t * 2];
        mma<T>(s, a, pair(b), pair(b + 8));
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = warp * 8 + t * 2 + (i & 1);
        sh.scores[g + 8 * (i >> 1)][column] = first + column < limit[i >> 1] ? s[i] * scale_log2 : -INFINITY;
      }
      __syncthreads();
      // Thread (g, t) needs columns {2t, 2t + 1} + 8 j of rows g and g + 8: the A operand of P V.
      float e[2][4][2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float top = m[r];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int c = 0; c < 2; ++c) top = fmaxf(top, e[r][j][c] = sh.scores[g + 8 * r][j * 8 + t * 2 + c]);
        }
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        const float base = base_of(top), scale = exp2_approx(m[r] - base);
        m[r] = top;
        float sum = 0.f;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int c = 0; c < 2; ++c) sum += e[r][j][c] = exp2_approx(e[r][j][c] - base);
        }
        l[r] = l[r] * scale + sum;
#pragma unroll
        for (int n = 0; n < 16; ++n) {
          o[n][r * 2] *= scale;
          o[n][r * 2 + 1] *= scale;
        }
      }
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const uint32_t a[4] = {T::pack(e[0][2 * k][0], e[0][2 * k][1]), T::pack(e[1][2 * k][0], e[1][2 * k][1]),
                               T::pack(e[0][2 * k + 1][0], e[0][2 * k + 1][1]), T::pack(e[1][2 * k + 1][0], e[1][2 * k + 1][1])};
#pragma unroll
        for (int n = 0; n < 16; n += 2) {
          // Two 8-column tiles of V, transposed on the way to registers.
          uint32_t b[4];
          const int row = k * 16 + (lane & 15), column = warp * 128 + n * 8 + (lane >> 4) * 8;
          load_transposed(b, &sh.kv[row][column]);
          mma<T>(o[n], a, b[0], b[1]);
          mma<T>(o[n + 1], a, b[2], b[3]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      l[r] += __shfl_xor_sync(0xffffffffu, l[r], 1);
      l[r] += __shfl_xor_sync(0xffffffffu, l[r], 2);
      const int tile_row = g + 8 * r;
      if (first_row + tile_row >= rows) continue;
      const float inv = l[r] > 0.f ? 1.f / l[r] : 0.f, lse2 = l[r] > 0.f ? m[r] + log2f(l[r]) : -INFINITY;
      const bool whole = seg.whole();
      const int64_t out_row = whole ? query + tile_row : partial_slot(blockIdx.x, seg.lo == 0) * kRows + tile_row;
#pragma unroll
      for (int n = 0; n < 16; ++n) {
        store_pair(whole ? p.out : static_cast<void*>(p.partial_out), out_row * 512 + warp * 128 + n * 8 + t * 2,
                   whole ? p.out_dtype : int32_t(FLASHMLA_F32), o[n][r * 2] * inv, o[n][r * 2 + 1] * inv);
      }
      if (warp == 0 && t == 0) {
        if (whole) p.lse[out_row] = lse2 * kLn2;
        else p.partial_lse[out_row] = make_float2(lse2, 1.f);
      }
    }
  }
}

}  // namespace flashmla::portable

using namespace flashmla;

extern "C" __global__ void __launch_bounds__(128) mla_decode_portable_bf16(const __grid_constant__ MlaDecodeParams p) {
  portable::decode<Bf16>(p);
}
extern "C" __global__ void __launch_bounds__(128) mla_decode_portable_f16(const __grid_constant__ MlaDecodeParams p) {
  portable::decode<F16>(p);
}
extern "C" __global__ void __launch_bounds__(512) mla_combine(const __grid_constant__ MlaDecodeParams p) { combine<false>(p); }
