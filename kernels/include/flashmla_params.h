// Every struct that crosses from host to device, by value, as a kernel's first parameter. Mirrored by one TypeScript file.
// All pointers are device pointers, 8 bytes; structs are laid out without hidden padding (see the static_asserts).
// Shapes are outermost first. b sequences, t query rows in all (t = b * s_q when query_start is null).
#pragma once
#include <stdint.h>
#include <vector_types.h>

enum FlashMlaDType : int32_t { FLASHMLA_BF16 = 0, FLASHMLA_F16 = 1, FLASHMLA_F32 = 2 };
enum FlashMlaCacheFormat : int32_t { FLASHMLA_ROWS_BF16 = 0, FLASHMLA_ROWS_F16 = 1, FLASHMLA_FP8_656 = 2 };

// A split row-tile group, for mla_combine: written by the worker that has its first part. 32 bytes.
struct MlaSplit {
  int64_t out_row;             //   0 first row of out and lse
  int32_t rows;                //   8 rows of the group
  int32_t splits;              //  12 parts; 0 or 1: nothing to merge
  int32_t first_worker;        //  16 group worker of the first part, the others follow
  int32_t line;                //  20 work of the whole launch, in 64-token blocks
  int32_t reserved[2];         //  24
};
static_assert(sizeof(MlaSplit) == 32, "mirrored on the host");

// mla_decode_* and mla_combine (the same values for both). d_qk = 576, d_v = 512.
struct MlaDecodeParams {
  const void* q;               //   0 [t, h_q, 576] the kernel's dtype, contiguous
  const void* kv;              //   8 [num_blocks, page_size, 576] the kernel's dtype; strides below
  const int32_t* block_table;  //  16 [b, block_table_stride] entries past a sequence's last page are never read
  const int32_t* seq_lens;     //  24 [b] tokens in the cache, the queries' own included; >= 0
  const int32_t* query_start;  //  32 [b + 1] first query row of each sequence, or null: s_q rows each
  void* out;                   //  40 [t, h_q, 512] out_dtype
  float* lse;                  //  48 [t, h_q] natural log
  void* partial_out;           //  56 [2 * workers, tile_rows, 512] f32, or f16 scaled by a power of two: see parts_in_halves; _few: decode_few::Part
  float2* partial_lse;         //  64 [2 * workers, tile_rows] base-2 log, and the factor that takes the row's scale back; _few: maximum, base 2, and sum
  int64_t block_table_stride;  //  72 entries between two sequences' rows of block_table
  int64_t kv_page_stride;      //  80 elements between two pages
  int64_t kv_row_stride;       //  88 elements between two rows of a page
  float softmax_scale;         //  96
  int32_t batch;               // 100 b
  int32_t s_q;                 // 104 query rows of each sequence, or the largest number of them when query_start is given
  int32_t h_q;                 // 108
  int32_t page_size;           // 112
  int32_t out_dtype;           // 116 FlashMlaDType
  int32_t workers;             // 120 blocks in the grid; a multiple of tiles_per_group
  int32_t tiles_per_group;     // 124 row tiles of one sequence walked side by side (they share KV through L2)
  int32_t min_blocks;          // 128 fewest 64-token blocks that a worker is given
  int32_t tile_overhead;       // 132 what starting a row tile costs, in 64-token blocks, for the balance; >= 1
  int32_t tile_rows;           // 136 query rows of a block: the decode kernel's tileRows in the manifest
  int32_t split_by_tile;       // 140 1: splits[seq * groups + group] is a tile group; 0: splits[i] is what starts in group worker i
  MlaSplit* splits;            // 144 [workers / tiles_per_group]
  uint32_t* parts_ready;       // 152 [blocks in the grid], twice that for _share; 0 between launches. null: mla_combine merges, or parts have no flags
  int32_t num_blocks;          // 160 pages of the cache
  int32_t group_workers;       // 164 workers / tiles_per_group
  int32_t groups;              // 168 row-tile groups of each sequence, or the largest number of them when query_start is given
  int32_t first_lead;          // 172 64-token blocks that the first of a tile's equal pieces has more than the others
  int32_t block_ps;            // 176 picoseconds that memory takes to bring the latent rows of 64 tokens; 0: loads keep to no pace
  int32_t reserved;            // 180 0
};
static_assert(sizeof(MlaDecodeParams) == 184, "mirrored on the host");

// mla_append_*: latent row -> (norm) -> (rotary) -> cache slot. One block of 128 threads a row, grid n.
struct MlaAppendParams {
  const void* latent;          //   0 [n, 576] f32 or bf16 (latent_dtype): 512 compressed, 64 rotary
  const float* norm_weight;    //   8 [512], or null: the latent is normed already
  const float* rotary_table;   //  16 [max_positions, 32, 2] cos, sin, or null: rotated already
  const int32_t* positions;    //  24 [n]; unused when rotary_table is null
  const int32_t* slots;        //  32 [n] block * page_size + offset; -1 writes nothing
  void* cache;                 //  40 [num_blocks, page_size, bytes of a token]
  int64_t cache_page_stride;   //  48 bytes between two pages
  int64_t cache_row_stride;    //  56 bytes between two rows of a page
  float norm_eps;              //  64
  int32_t n;                   //  68
  int32_t page_size;           //  72
  int32_t latent_dtype;        //  76 FLASHMLA_F32 or FLASHMLA_BF16
  int32_t interleaved;         //  80 1: pairs (2j, 2j + 1); 0: pairs (j, j + 32)
  int32_t format;              //  84 FlashMlaCacheFormat
};
static_assert(sizeof(MlaAppendParams) == 88, "mirrored on the host");

// mla_cast: f32 -> bf16 or f16, round to nearest even. Grid ceil(n / 1024), 256 threads.
struct MlaCastParams {
  const float* source;         //   0 [n]
  void* target;                //   8 [n] target_dtype
  int64_t n;                   //  16 a multiple of 4
  int32_t target_dtype;        //  24 FLASHMLA_BF16 or FLASHMLA_F16
  int32_t reserved;            //  28 0
};
static_assert(sizeof(MlaCastParams) == 32, "mirrored on the host");
