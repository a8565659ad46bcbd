// Parts of a split row tile merged by the blocks that made them, where a tile has few of them: no second kernel.
//
// 1. Parts 0 .. n - 1 of a tile belong to successive group workers. Up to four are taken in by part 0, in their order. Of more, part i takes in parts
//    i + 1, i + 2, i + 4, ... as long as 2^k divides i and they exist, then hands the sum to the part below; part 0 writes the rows. Who adds
//    what to what depends on the lengths alone, so results do not depend on timing.
// 2. A part comes to its taker through the ring of KV buffers, as if it were one more block, but by one copy: it fits one, and is asked for while the
//    last block is worked on. Only a worker's last segment takes any in.
// 3. A part is handed over as its threads hold it: of each of a thread's two rows its values in f16, scaled by a power of two for the largest, what
//    takes that back, the row's maximum and the thread's share of its sum. Half of the bytes of f32, and 2^-12 of the largest as the error.
// 4. A block waits for blocks of higher workers only. Those are lower blocks of the grid, so they run or have run when it does.
// 5. A block hands over at most once in a launch, its first segment. Its flag is set by a warp of its own: until what the others wrote is seen by all
//    takes a microsecond or two, and they go on. Whoever takes a part clears its flag: they are all 0 between launches.
#pragma once
#include "../../common/discard.h"
#include "output.h"
#include "producer.h"

namespace flashmla::decode {

constexpr int kValueWords = 16, kPartWords = kValueWords + 2;  // 16-byte words of a thread
constexpr int kWordBytes = kConsumerThreads * 16;              // one of all threads
static_assert(kPartWords * kWordBytes == kTiles * kTileBytes, "a part is as large as a KV buffer");
constexpr int kHandingThreads = kConsumerThreads + 32;
constexpr int kFewParts = 4;  // as many are all taken in by the first: what else takes some in has to hand over once more

// How far the next part is that a part takes in after one `step` away, or the first one after 0; 0: none is left.
__device__ __forceinline__ int next_taken(const PartPlace& place, int step) {
  if (place.parts <= kFewParts) return place.index == 0 && step + 1 < place.parts ? step + 1 : 0;
  const int next = step == 0 ? 1 : 2 * step;
  return takes_in(place, next) ? next : 0;
}

// Where blocks do not run side by side on the same KV. Most of a call's blocks leave before its end and the next call's start: they have time to fetch
// KV ahead, and take turns then with what comes from memory.
struct TurnsStorage : SharedStorage {
  static constexpr int kFetchedBlocks = 4;

  // 1.8 times memory's rate, and no longer than what comes before runs: see prefetch_paced.
  __device__ __forceinline__ static uint32_t fetch_pace(int) { return 4000; }
  __device__ __forceinline__ static bool fetches_on(uint32_t) { return false; }
  // Blocks with tokens to mask stay where they are, so the consumers need not know.
  __device__ __forceinline__ static BlockOrder order(const MlaDecodeParams& p, const Segment& seg, int number) {
    return BlockOrder(unmasked_blocks(seg), number == 0 && lengths_known(p) ? kFetchedBlocks : 0, p.page_size >= kBlockTokens);
  }
};
static_assert(3 * TurnsStorage::kFetchedBlocks <= 32, "page ids that the producer holds");
static_assert(sizeof(TurnsStorage) + 1024 <= 232448, "shared memory of one block");

__device__ __forceinline__ char* part_of(const MlaDecodeParams& p, int block) {
  return static_cast<char*>(p.partial_out) + int64_t(block) * kPartWords * kWordBytes;
}

// All consumers. live: whether this thread's warp has rows of the tile.
__device__ __forceinline__ void hand_over(const MlaDecodeParams& p, int block, bool live, const float (&o)[128],
                                          const float (&m)[2], const float (&l)[2]) {
  if (live) {
    float4* part = reinterpret_cast<float4*>(part_of(p, block)) + threadIdx.x;
    float top[2] = {0.f, 0.f};
#pragma unroll
    for (int i = 0; i < 128; ++i) top[(i >> 1) & 1] = fmaxf(top[(i >> 1) & 1], fabsf(o[i]));
    const HalfScale scale[2] = {HalfScale(top[0]), HalfScale(top[1])};
    const float factor[2] = {scale[0].factor(), scale[1].factor()};
#pragma unroll
    for (int w = 0; w < kValueWords; ++w) {
      uint32_t v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = F16::pack(o[w * 8 + i * 2] * factor[i & 1], o[w * 8 + i * 2 + 1] * factor[i & 1]);
      __stcg(reinterpret_cast<uint4*>(part + w * kConsumerThreads), make_uint4(v[0], v[1], v[2], v[3]));
    }
    __stcg(part + kValueWords * kConsumerThreads, make_float4(m[0], m[1], l[0], l[1]));
    __stcg(part + (kValueWords + 1) * kConsumerThreads, make_float4(scale[0].back(), scale[1].back(), 0.f, 0.f));
  }
  ptx::bar_arrive(kHandedOver, kHandingThreads);
}

// Whether the block hands over its first segment. Asked before the consumers work on it: its note's place is another's later.
__device__ __forceinline__ bool hands_over(const SharedStorage& sh) { return sh.note[0].any && sh.places[0].index > 0; }

// Shows the block's part to the one that takes it in, once it is written; a warp that does nothing else.
__device__ __forceinline__ void show_part(const MlaDecodeParams& p, int block) {
  ptx::bar_sync(kHandedOver, kHandingThreads);
  if ((threadIdx.x & 31) == 0) asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(p.parts_ready + block) : "memory");
}

// Loads the parts that the last segment takes in, in the buffers' turn, when they are there; the producer.
__device__ __forceinline__ void load_parts(const MlaDecodeParams& p, SharedStorage& sh, const Loaded& last) {
  using namespace ptx;
  const Note& note = sh.note[last.number & 1];
  if (!note.any) return;
  const Worker worker(p);
  const PartPlace place = place_of(sh.at, note.seg, worker.group);  // the clerk may not have noted it yet
  uint32_t empty_parity = last.empty_parity;
  for (int step = next_taken(place, 0), n = note.seg.hi - note.seg.lo; step != 0; step = next_taken(place, step), ++n) {
    const int buffer = n & 1, block = worker.index + step * p.tiles_per_group;
    if ((threadIdx.x & 31) == 0) {
      for (int region = 0; region < kRegions; ++region) mbarrier_wait(smem_address(&sh.empty[buffer][region]), (empty_parity >> buffer) & 1);
      uint32_t ready;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(ready) : "l"(p.parts_ready + block) : "memory");
      } while (ready == 0);
      p.parts_ready[block] = 0;
      fence_proxy_async_all();
      const uint32_t bar = smem_address(&sh.full[buffer][kPartUnit]);
      mbarrier_expect_tx(bar, kPartWords * kWordBytes);
      bulk_load(smem_address(sh.kv[buffer][0]), part_of(p, block), kPartWords * kWordBytes, bar);
    }
    empty_parity ^= 1 << buffer;
  }
}

// Drops another block's part, when all of it has come. All consumers.
__device__ __forceinline__ void discard_part(const MlaDecodeParams& p, int block) {
#pragma unroll 1
  for (int line = threadIdx.x; line < kPartWords * kWordBytes / kLineBytes; line += kConsumerThreads) discard_line(part_of(p, block) + line * kLineBytes);
}

// Adds the part of another block, in a KV buffer, to this one's. All consumers.
__device__ __forceinline__ void take_in(uint32_t buffer, bool live, float (&o)[128], float (&m)[2], float (&l)[2]) {
  if (!live) return;
  const uint32_t part = buffer + threadIdx.x * 16;
  const auto floats = [&](int word) {
    const uint4 v = ptx::load_shared16(part + word * kWordBytes);
    return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
  };
  const float4 state = floats(kValueWords), back = floats(kValueWords + 1);
  float mine[2], theirs[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float other = r == 0 ? state.x : state.y, most = fmaxf(m[r], other), base = base_of(most);
    mine[r] = exp2_approx(m[r] - base);
    theirs[r] = exp2_approx(other - base);
    m[r] = most;
    l[r] = l[r] * mine[r] + (r == 0 ? state.z : state.w) * theirs[r];
    theirs[r] *= r == 0 ? back.x : back.y;
  }
#pragma unroll
  for (int w = 0; w < kValueWords; ++w) {
    const uint4 word = ptx::load_shared16(part + w * kWordBytes);
    const uint32_t v[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 two = __half22float2(*reinterpret_cast<const __half2*>(&v[i]));
      o[w * 8 + i * 2] = o[w * 8 + i * 2] * mine[i & 1] + two.x * theirs[i & 1];
      o[w * 8 + i * 2 + 1] = o[w * 8 + i * 2 + 1] * mine[i & 1] + two.y * theirs[i & 1];
    }
  }
}

}  // namespace flashmla::decode
