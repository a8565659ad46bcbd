// Clocks in the kernel, for benchmarks/gpu/trace.py and trace_replays.py: compiled in with -DFLASHMLA_TRACE, nothing at all without.
#pragma once
#include <stdint.h>

namespace flashmla {

// Words of a block's record. Clock words hold the low half of %clock64, the other two %globaltimer in ns.
enum TraceWord : int {
  kTraceStartNs = 0,
  kTraceStart = 1,
  kTracePrecedent = 2,      // what comes before has ended
  kTraceLocated = 3,        // the block knows its place
  kTraceQueriesAsked = 4,   // of the first segment
  kTraceSegment = 8,        // eight words for each of the first two segments:
  kTraceFound = 0,          //   the consumers know it
  kTraceQueries = 1,        //   its queries are there
  kTraceScores = 2,         //   its first scores are done
  kTraceProduct = 3,        //   its first product is done
  kTraceProducts = 4,       //   its last product is done
  kTraceWritten = 5,        //   its rows are written
  kTracePart = 24,          // two words for each of the first three parts that a block takes in: it is there, it has been added
  kTraceEnd = 30,
  kTraceEndNs = 31,
  kTraceWords = 32,
};

#ifdef FLASHMLA_TRACE
extern "C" {
__device__ uint32_t flashmla_trace_words[1024 * kTraceWords];
}

__device__ __forceinline__ void trace(int word) {
  uint32_t now;
  if (word == kTraceStartNs || word == kTraceEndNs) {
    uint64_t ns;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns)::"memory");
    now = uint32_t(ns);
  } else {
    asm volatile("mov.u32 %0, %clock;" : "=r"(now)::"memory");
  }
  flashmla_trace_words[blockIdx.x * kTraceWords + word] = now;
}
// Of the nth segment.
__device__ __forceinline__ void trace_segment(int n, int word) {
  if (n < 2) trace(kTraceSegment + 8 * n + word);
}
__device__ __forceinline__ void trace_part(int n, int word) {
  if (n < 3) trace(kTracePart + 2 * n + word);
}
#else
__device__ __forceinline__ void trace(int) {}
__device__ __forceinline__ void trace_segment(int, int) {}
__device__ __forceinline__ void trace_part(int, int) {}
#endif

}  // namespace flashmla
