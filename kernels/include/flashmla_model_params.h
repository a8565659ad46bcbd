// Structs of the kernels in kernels/model, by value, as a kernel's only parameter. Mirrored by one TypeScript file.
// All pointers are device pointers, 8 bytes; structs are laid out without hidden padding (see the static_asserts).
// Shapes are outermost first. n: rows, t: query rows of a step, b: sequences. Activations are f32.
#pragma once
#include <stdint.h>

enum FlashMlaValueType : int32_t { FLASHMLA_VALUE_BF16 = 0, FLASHMLA_VALUE_F16 = 1, FLASHMLA_VALUE_F32 = 2 };
enum FlashMlaRowFormat : int32_t { FLASHMLA_ROW_F32 = 0, FLASHMLA_ROW_BF16 = 1, FLASHMLA_ROW_FP8_656 = 2, FLASHMLA_ROW_FP8_584 = 3 };

// mla_take_rows: out[r] = table[ids[r]]. An id that is no row gives NaN.
struct MlaTakeRowsParams {
  const void* table;           //   0 [rows, d] table_dtype
  const int32_t* ids;          //   8 [n]
  float* out;                  //  16 [n, d]
  int64_t n;                   //  24
  int64_t d;                   //  32
  int64_t rows;                //  40
  int32_t table_dtype;         //  48 FLASHMLA_VALUE_F32 or FLASHMLA_VALUE_BF16
  int32_t reserved;            //  52 0
};
static_assert(sizeof(MlaTakeRowsParams) == 56, "mirrored on the host");

// mla_rms_norm: a block a row. out may be x.
struct MlaNormParams {
  const float* x;              //   0 [n, d]
  const float* weight;         //   8 [d]
  float* out;                  //  16 [n, d]
  int64_t n;                   //  24
  int64_t d;                   //  32
  float eps;                   //  40
  int32_t reserved;            //  44 0
};
static_assert(sizeof(MlaNormParams) == 48, "mirrored on the host");

// mla_copy_columns: out[r, k] = x[r, k] for k < width; both pointers stand at their first column.
struct MlaColumnsParams {
  const float* x;              //   0 [rows, x_stride]
  float* out;                  //   8 [rows, out_stride]
  int64_t rows;                //  16
  int64_t x_stride;            //  24
  int64_t out_stride;          //  32
  int64_t width;               //  40
};
static_assert(sizeof(MlaColumnsParams) == 48, "mirrored on the host");

// mla_rotary: x and out stand at their first rotated column; out may be x. A position past the table gives NaN.
struct MlaRotaryParams {
  const float* x;              //   0 [rows, stride]
  float* out;                  //   8 [rows, out_stride]
  const float* table;          //  16 [max_positions, pairs, 2] cos, sin
  const int32_t* positions;    //  24 [rows / rows_per_position]
  int64_t rows;                //  32
  int64_t stride;              //  40
  int64_t out_stride;          //  48
  int64_t rows_per_position;   //  56
  int64_t max_positions;       //  64
  int32_t pairs;               //  72
  int32_t interleaved;         //  76 1: pairs (2j, 2j + 1); 0: pairs (j, j + pairs)
};
static_assert(sizeof(MlaRotaryParams) == 80, "mirrored on the host");

// mla_add: out += a; mla_silu_mul: out = silu(a) * b. out may be a.
struct MlaElementsParams {
  float* out;                  //   0 [n]
  const float* a;              //   8 [n]
  const float* b;              //  16 [n], unused by mla_add
  int64_t n;                   //  24
};
static_assert(sizeof(MlaElementsParams) == 32, "mirrored on the host");

// mla_convert: a weight into the type that it is kept in, to the nearest, ties to even.
struct MlaConvertParams {
  const void* source;          //   0 [n] source_dtype
  void* target;                //   8 [n] target_dtype
  int64_t n;                   //  16
  int32_t source_dtype;        //  24 FlashMlaValueType
  int32_t target_dtype;        //  28 FLASHMLA_VALUE_F32 or FLASHMLA_VALUE_BF16
};
static_assert(sizeof(MlaConvertParams) == 32, "mirrored on the host");

// mla_argmax: a block a row. Ties go to the lower index, NaN loses to any number.
struct MlaArgmaxParams {
  const float* logits;         //   0 [n, vocab]
  int32_t* ids;                //   8 [n]
  int64_t n;                   //  16
  int64_t vocab;               //  24
};
static_assert(sizeof(MlaArgmaxParams) == 32, "mirrored on the host");

// mla_sample: a block a row. A row that is not drawn is -1: more than 4096 of its tokens may be needed, or its logits are not numbers.
struct MlaSampleParams {
  const float* logits;         //   0 [n, vocab]
  const float* rows;           //   8 [n, 6] temperature, top_k, top_p, min_p, random's upper 16 bits and its lower 16, as parts of 1
  int32_t* ids;                //  16 [n]
  int64_t n;                   //  24
  int64_t vocab;               //  32
};
static_assert(sizeof(MlaSampleParams) == 40, "mirrored on the host");

// mla_route: a warp a row. At most 1024 experts.
struct MlaRouteParams {
  const float* logits;         //   0 [n, experts]
  const float* bias;           //   8 [experts] or null
  int32_t* ids;                //  16 [n, top_k]
  float* weights;              //  24 [n, top_k]
  int64_t n;                   //  32
  int32_t experts;             //  40
  int32_t top_k;               //  44
  int32_t sigmoid;             //  48 1: sigmoid scores; 0: softmax
  int32_t num_groups;          //  52 1: no groups
  int32_t topk_groups;         //  56
  int32_t group_best;          //  60 experts whose sum ranks a group: 1 or 2
  int32_t normalize;           //  64
  float scale;                 //  68
};
static_assert(sizeof(MlaRouteParams) == 72, "mirrored on the host");

// mla_linear_*: out[r, h, j] = sum_k x[r, h, k] * weight[h, j, k], or added to it; one head for a plain product.
// mla_gated_*: out[r, j] = silu(sum_k x[r, k] * weight[j, k]) * sum_k x[r, k] * up[j, k], weights by their maps; one head, never added.
struct MlaLinearParams {
  const float* x;              //   0 [n, heads, i], rows x_stride and heads x_head_stride apart
  const void* weight;          //   8 [heads, o, i] weight_dtype
  float* out;                  //  16 [n, heads, o], rows out_stride and heads out_head_stride apart
  int64_t n;                   //  24
  int64_t o;                   //  32
  int64_t i;                   //  40
  int64_t x_stride;            //  48
  int64_t x_head_stride;       //  56
  int64_t out_stride;          //  64
  int64_t out_head_stride;     //  72
  int32_t heads;               //  80
  int32_t weight_dtype;        //  84 FLASHMLA_VALUE_F32 or FLASHMLA_VALUE_BF16
  int32_t vector;              //  88 1: rows of x and weight start at multiples of 16 bytes
  int32_t add;                 //  92 1: added to what out holds
  const void* weight_map;      //  96 the weight [heads * o, i] as a tensor map in device memory, boxes of 64 x 64; Hopper's tiles only
  const void* up_map;          // 104 the same of the second weight; mla_gated_* only
};
static_assert(sizeof(MlaLinearParams) == 112, "mirrored on the host");

// mla_linear_row: one row of x with one weight or two, out[r, j] = sum_k x[r, k] * weight[j, k], or added to it, or as mla_gated_* where there is an `up`.
// mla_linear_rows_mma: the same for some rows, with bf16 weights of a multiple of 32 columns, rows at multiples of 16 bytes. A block has 8 outputs of a
// single row or a gated product, 16 otherwise.
struct MlaLinearRowsParams {
  const float* x;              //   0 [n, i]
  const void* weight;          //   8 [o, i] weight_dtype
  const void* up;              //  16 [o, i] weight_dtype, or null
  float* out;                  //  24 [n, o]
  const void* other_weight;    //  32 [other_o, i] other_dtype
  const void* other_up;        //  40 [other_o, i] other_dtype, or null
  float* other_out;            //  48 [n, other_o]
  int64_t n;                   //  56
  int64_t i;                   //  64
  int64_t o;                   //  72
  int64_t other_o;             //  80 0: no other
  int32_t weight_dtype;        //  88 FLASHMLA_VALUE_F32 or FLASHMLA_VALUE_BF16
  int32_t other_dtype;         //  92
  int32_t vector;              //  96 1: rows of x and of the weights start at multiples of 16 bytes
  int32_t blocks;              // 100 of the first product
  int32_t add;                 // 104 1: what has no `up` is added to what out holds
  int32_t reserved;            // 108 0
};
static_assert(sizeof(MlaLinearRowsParams) == 112, "mirrored on the host");

// One expert's matrices, as a table in device memory.
struct MlaExpert {
  const void* gate;            //   0 [inner, hidden]
  const void* up;              //   8 [inner, hidden]
  const void* down;            //  16 [hidden, inner]
  int32_t dtypes[3];           //  24 of gate, up and down: FLASHMLA_VALUE_F32 or FLASHMLA_VALUE_BF16
  int32_t reserved;            //  36
  const void* maps[3];         //  40 tensor maps of gate, up and down, as weight_map of MlaLinearParams
};
static_assert(sizeof(MlaExpert) == 64, "mirrored on the host");

// mla_expert_*: out[r] += sum_c weights[r, c] * down(silu(gate x[r]) * up x[r]) of expert ids[r, c]. pairs = n * choices.
// Few pairs: mla_expert_up, mla_expert_down. Many: mla_expert_sort, mla_expert_tiles (gate, up) and mla_silu_mul, or mla_expert_gated, then
// mla_expert_tiles (down), mla_expert_sum; what they leave is sorted by expert.
struct MlaExpertParams {
  const float* x;              //   0 [n, hidden]
  float* out;                  //   8 [n, hidden]
  const int32_t* ids;          //  16 [n, choices]
  const float* weights;        //  24 [n, choices]
  const MlaExpert* experts;    //  32 [count]
  float* gate;                 //  40 [pairs, inner]: silu(gate) * up in the end
  float* up;                   //  48 [pairs, inner], of mla_expert_tiles only
  float* down;                 //  56 [pairs, hidden], many only
  int32_t* order;              //  64 [pairs] pairs sorted by expert, an expert's in any order; many only
  int32_t* place;              //  72 [pairs] where a pair stands in order, -1: its expert does not exist; many only
  int32_t* tiles;              //  80 [most_tiles, 4] of each row tile its expert, its first pair in order, and its pairs: 0 where there is no tile; many only
  int64_t n;                   //  88
  int64_t hidden;              //  96
  int64_t inner;               // 104
  int32_t choices;             // 112
  int32_t count;               // 116 at most 1024 when there are many pairs
  int32_t stage;               // 120 of mla_expert_tiles and mla_expert_gated: 0 gate, 1 up, 2 down
  int32_t vector;              // 124 1: rows of x and of the matrices start at multiples of 16 bytes
  int32_t most_tiles;          // 128 many only
  int32_t reserved;            // 132 0
};
static_assert(sizeof(MlaExpertParams) == 136, "mirrored on the host");

// mla_append_latents: a row's first kv_lora_rank values by mla_rms_norm, the others by mla_rotary, in place, and the row by mla_append_rows.
struct MlaAppendLatentsParams {
  float* latent;               //   0 [n, kv_lora_rank + rope_dim]
  const float* norm;           //   8 [kv_lora_rank]
  const float* table;          //  16 [max_positions, rope_dim / 2, 2] cos, sin
  const int32_t* positions;    //  24 [n]
  const int32_t* slots;        //  32 [n]
  void* cache;                 //  40 [num_blocks] pages
  int64_t n;                   //  48
  int64_t num_blocks;          //  56
  int64_t max_positions;       //  64
  int32_t page_size;           //  72
  int32_t format;              //  76 FlashMlaRowFormat
  int32_t kv_lora_rank;        //  80
  int32_t rope_dim;            //  84
  float eps;                   //  88
  int32_t interleaved;         //  92
};
static_assert(sizeof(MlaAppendLatentsParams) == 96, "mirrored on the host");

// mla_append_rows: latent row -> cache slot, the bytes those of the host codec. A block a row.
struct MlaAppendRowsParams {
  const float* latent;         //   0 [n, kv_lora_rank + rope_dim]
  const int32_t* slots;        //   8 [n] block * page_size + offset; others than those of the cache write nothing
  void* cache;                 //  16 [num_blocks] pages
  int64_t n;                   //  24
  int64_t num_blocks;          //  32
  int32_t page_size;           //  40
  int32_t format;              //  44 FlashMlaRowFormat
  int32_t kv_lora_rank;        //  48
  int32_t rope_dim;            //  52
};
static_assert(sizeof(MlaAppendRowsParams) == 56, "mirrored on the host");

// mla_attend, mla_attend_merge and mla_gather_latents: absorbed attention over a cache of any format and width, in f32.
struct MlaAttendParams {
  const float* q;              //   0 [t, h, width]
  float* out;                  //   8 [t, h, kv_lora_rank]
  float* lse;                  //  16 [t, h] natural log
  const void* cache;           //  24 [num_blocks] pages
  const int32_t* query_start;  //  32 [b + 1]
  const int32_t* seq_lens;     //  40 [b]
  const int32_t* block_table;  //  48 [b, block_table_stride]
  float* partial_out;          //  56 [splits, t, h, kv_lora_rank], splits > 1 only
  float* partial_lse;          //  64 [splits, t, h] natural log, splits > 1 only
  int64_t block_table_stride;  //  72
  int64_t num_blocks;          //  80
  int32_t t;                   //  88 rows of q; those past query_start[b] are not written
  int32_t h;                   //  92
  int32_t b;                   //  96
  int32_t page_size;           // 100
  int32_t format;              // 104 FlashMlaRowFormat
  int32_t kv_lora_rank;        // 108
  int32_t rope_dim;            // 112
  int32_t tile_queries;        // 116 query rows of a tile of 16 rows; tiles have tile_queries * min(h, 16) rows
  int32_t splits;              // 120 parts of a sequence's tokens
  float scale;                 // 124
  int32_t vector;              // 128 1: rows of the cache start at multiples of 16 bytes
  int32_t reserved;            // 132 0
};
static_assert(sizeof(MlaAttendParams) == 136, "mirrored on the host");

// mla_gather_latents: tokens [first, first + count) of a sequence as f32 rows. mla_attend_naive: a run of attention over
// rebuilt keys and values; out holds the unfinished sums between runs, state their maximum and sum.
struct MlaNaiveParams {
  const float* q;              //   0 [t, h, nope + rope]
  float* out;                  //   8 [t, h, v]
  float* state;                //  16 [t, h, 2] maximum and sum of exponentials
  const void* cache;           //  24 [num_blocks] pages
  const int32_t* blocks;       //  32 the sequence's row of the block table
  float* latents;              //  40 [count, kv_lora_rank + rope_dim]
  const float* expanded;       //  48 [count, h, nope + v]
  int64_t first_query;         //  56 the sequence's first row of q
  int64_t num_blocks;          //  64
  int32_t queries;             //  72 of the sequence
  int32_t seq_len;             //  76
  int32_t first;               //  80 token of the run
  int32_t count;               //  84 tokens of the run
  int32_t h;                   //  88
  int32_t nope;                //  92
  int32_t v;                   //  96
  int32_t page_size;           // 100
  int32_t format;              // 104 FlashMlaRowFormat
  int32_t kv_lora_rank;        // 108
  int32_t rope_dim;            // 112
  float scale;                 // 116
};
static_assert(sizeof(MlaNaiveParams) == 120, "mirrored on the host");
