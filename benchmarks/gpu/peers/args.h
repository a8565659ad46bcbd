// What both peers are given: one paged MLA decode, bf16, page size 64, plain device pointers. Mirrored by peers.py.
#pragma once

struct PeerArgs {
  int b, s_q, h_q, num_blocks, causal, max_blocks;  // max_blocks: entries of a block table row
  float scale;
  int num_sms;
  void *q;           // [b, s_q, h_q, 576]
  void *kv;          // [num_blocks, 64, 576]
  void *out;         // [b, s_q, h_q, 512]
  float *lse;
  int *block_table;  // [b, max_blocks]
  int *seq_lens;     // [b]
  int *meta;         // scheduler metadata, sized by the peer
  int *num_splits;   // [b + 1], FlashMLA only
  float *lse_accum, *out_accum;
  void *stream;
};
