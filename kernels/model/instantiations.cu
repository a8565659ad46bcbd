// Kernels of the model graph, portable from Ampere on. Each takes one struct of include/flashmla_model_params.h.
#include "attend.h"
#include "attend_naive.h"
#include "cache.h"
#include "choose.h"
#include "experts.h"
#include "linear_few.h"
#include "linear_mma.h"
#include "rows.h"
#include "sample.h"
#include "tile.h"

#define KERNEL(symbol, threads, Params, ...) \
  extern "C" __global__ void __launch_bounds__(threads) symbol(const __grid_constant__ Params p) { flashmla::__VA_ARGS__(p); }
// With registers for so many blocks on a multiprocessor.
#define KERNEL_BESIDE(symbol, threads, blocks, Params, ...) \
  extern "C" __global__ void __launch_bounds__(threads, blocks) symbol(const __grid_constant__ Params p) { flashmla::__VA_ARGS__(p); }

KERNEL(mla_take_rows, 256, MlaTakeRowsParams, take_rows)
KERNEL(mla_rms_norm, 256, MlaNormParams, rms_norm)
KERNEL(mla_copy_columns, 256, MlaColumnsParams, copy_columns)
KERNEL(mla_rotary, 256, MlaRotaryParams, rotary)
KERNEL(mla_add, 256, MlaElementsParams, add)
KERNEL(mla_silu_mul, 256, MlaElementsParams, silu_mul)
KERNEL(mla_convert, 256, MlaConvertParams, convert)
KERNEL(mla_argmax, 256, MlaArgmaxParams, argmax)
KERNEL(mla_sample, 1024, MlaSampleParams, sample)
KERNEL(mla_route, 32, MlaRouteParams, route)
KERNEL(mla_linear_few_1, 256, MlaLinearParams, linear_few<1, 1>)
KERNEL(mla_linear_few_4, 256, MlaLinearParams, linear_few<4, 2>)
KERNEL(mla_linear_few_8, 256, MlaLinearParams, linear_few<8, 2>)
KERNEL_BESIDE(mla_linear_row, 256, 4, MlaLinearRowsParams, linear_row)
KERNEL_BESIDE(mla_linear_rows_mma, 256, 2, MlaLinearRowsParams, linear_rows_mma)
KERNEL_BESIDE(mla_linear_mma_16x16, 256, 2, MlaLinearParams, linear_mma<1, 2>)
KERNEL_BESIDE(mla_linear_mma_16x32, 256, 2, MlaLinearParams, linear_mma<1, 4>)
KERNEL(mla_linear_mma_32x32, 256, MlaLinearParams, linear_mma<2, 4>)
KERNEL(mla_linear_many, 128, MlaLinearParams, linear_many)
KERNEL(mla_linear_half, 256, MlaLinearParams, linear_half)
KERNEL_BESIDE(mla_expert_up, 256, 4, MlaExpertParams, expert_up)
KERNEL_BESIDE(mla_expert_down, 256, 2, MlaExpertParams, expert_down)
KERNEL(mla_expert_sort, 1024, MlaExpertParams, expert_sort)
KERNEL(mla_expert_tiles, 128, MlaExpertParams, expert_tiles)
KERNEL(mla_expert_tiles_half, 256, MlaExpertParams, expert_tiles_half)
KERNEL(mla_expert_sum, 256, MlaExpertParams, expert_sum)
KERNEL(mla_append_rows, 128, MlaAppendRowsParams, append_rows)
KERNEL(mla_append_latents, 128, MlaAppendLatentsParams, append_latents)
KERNEL_BESIDE(mla_attend, 256, 2, MlaAttendParams, attend)
KERNEL(mla_attend_merge, 128, MlaAttendParams, attend_merge)
KERNEL(mla_gather_latents, 256, MlaNaiveParams, gather_latents)
KERNEL(mla_attend_naive, 128, MlaNaiveParams, attend_naive)
