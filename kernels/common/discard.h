// What one block leaves in memory for another, and nobody reads again: L2 need not write it back. Memory takes as long for those bytes as for the KV that it
// could bring instead, and a little more to turn around.
#pragma once

namespace flashmla {

constexpr int kLineBytes = 128;
constexpr int kLineWords = kLineBytes / 16;

// Takes a line out of L2 without writing it to memory: it holds anything until it is written again. Those who read it have come to a barrier with the thread
// that calls this, and what they read has been used: a load that is under way still may find the line gone, barrier or not.
__device__ __forceinline__ void discard_line(const void* line) { asm volatile("discard.global.L2 [%0], 128;" ::"l"(line) : "memory"); }

// Whether a launch brings so much KV through L2 that what it has written is written back before the next one writes it anew. Where it doesn't,
// discarding takes its time for nothing. line: the launch's work, in 64-token blocks; 400 are 29 MB.
__device__ __forceinline__ bool flows_through_l2(int line) { return line >= 400; }

}  // namespace flashmla
