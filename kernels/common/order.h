// In which order a worker takes the KV blocks of a segment. It depends on nothing but the lengths, so that results stay the same.
#pragma once

namespace flashmla {

// As they stand in the sequence.
struct InOrder {
  __device__ __forceinline__ int operator()(int n) const { return n; }
  __device__ __forceinline__ int mixed() const { return 0; }
};

// Of a segment whose first blocks have most likely been fetched into L2: one of those, then two that come from memory, and so on while there are
// both. So memory is at work from the first block on, and not only when all are used up that wait in L2.
struct BlockOrder {
  int fetched;  // blocks that are taken for fetched
  int triples;  // how often one of them comes before two others

  // most_fetched 0: none has been. alternates: false leaves the order as it is.
  __device__ __forceinline__ BlockOrder(int blocks, int most_fetched, bool alternates)
      : fetched(min(most_fetched, blocks)), triples(alternates ? min(fetched, (blocks - fetched) / 2) : 0) {}
  // The nth block, counted from the segment's first.
  __device__ __forceinline__ int operator()(int n) const {
    if (n >= 3 * triples) return n - 2 * triples < fetched ? n - 2 * triples : n;
    const int triple = unsigned(n) / 3;
    return n == 3 * triple ? triple : fetched - 1 + n - triple;
  }
  // From which one on all come from memory, one after the other.
  __device__ __forceinline__ int mixed() const { return fetched + 2 * triples; }
};

}  // namespace flashmla
