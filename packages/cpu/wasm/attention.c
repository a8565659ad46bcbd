// Absorbed MLA attention over a paged cache.
//
// 1. A work item is one sequence's run of up to 64 query rows (queries × heads, which share the keys) and one split of
//    its tokens. Splits depend on lengths alone, so results don't depend on the number of threads.
// 2. Tokens come in tiles of 16: used where they lie in a float32 cache, else decoded once a tile.
// 3. Two rows at a time: scores by 2 × 4 dot products, online softmax, then 2 × 16 columns of the output by
//    multiply-adds of broadcast probabilities. Values are the first `rank` columns of the keys.
// 4. A sequence of one split is normalized in place; else combine adds the splits up by their LSE.
#include "cache.h"
#include "command.h"

enum { TILE = 16, GROUP = 64 };

typedef struct {
  const Cache* cache;
  const i32 *starts, *lengths, *table;
  u32 stride, b, h;
  float scale;
  float *out, *lse, *partial, *partialMl;
  const float* q;
} Plan;

static Plan planOf(Command* c) {
  Plan p = {.out = PTR(float, 0), .lse = PTR(float, 1), .q = PTR(float, 2), .cache = PTR(Cache, 3),
            .starts = PTR(i32, 4), .lengths = PTR(i32, 5), .table = PTR(i32, 6), .stride = c->a[7], .b = c->a[8],
            .h = c->a[9], .scale = argFloat(c, 10), .partial = PTR(float, 11), .partialMl = PTR(float, 12)};
  return p;
}

// Mirrored by src/fast/attention.ts, which sizes the partial results.
INLINE u32 splitLength(u32 length, u32 rows) {
  if (rows > 256) return length;
  u32 even = (length + 63) / 64;
  even = (even + TILE - 1) / TILE * TILE;
  return even < 64 ? 64 : even;
}

INLINE u32 splitsOf(u32 length, u32 rows) {
  return length == 0 ? 1 : (length + splitLength(length, rows) - 1) / splitLength(length, rows);
}

#define UNROLL _Pragma("clang loop unroll(full)")

// s[r][j] = q[r] · k[j] for R rows and T tokens.
INLINE void scores(const int R, const int T, const float* const* q, const float* const* k, u32 width, float (*s)[TILE]) {
  f4 acc[R][T];
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int t = 0; t < T; t++) acc[r][t] = zero4();
  u32 i = 0;
  for (; i + 4 <= width; i += 4) {
    f4 a[R];
    UNROLL for (int r = 0; r < R; r++) a[r] = F4(q[r] + i);
    UNROLL for (int t = 0; t < T; t++) {
      f4 b = F4(k[t] + i);
      UNROLL for (int r = 0; r < R; r++) acc[r][t] = MADD(a[r], b, acc[r][t]);
    }
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int t = 0; t < T; t++) {
    float sum = sum4(acc[r][t]);
    for (u32 u = i; u < width; u++) sum += q[r][u] * k[t][u];
    s[r][t] = sum;
  }
}

// out[r][column …] = out · correction + Σ_j p[r][j] · v[j][column …] over V vectors of columns.
INLINE void values(const int R, const int V, float* const* out, const float* correction, const float (*p)[TILE],
                   const float* const* v, int n, u32 column) {
  f4 acc[R][V];
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int k = 0; k < V; k++)
    acc[r][k] = MUL(F4(out[r] + column + 4 * k), splat4(correction[r]));
  for (int j = 0; j < n; j++) {
    f4 w[R];
    UNROLL for (int r = 0; r < R; r++) w[r] = SPLAT(&p[r][j]);
    UNROLL for (int k = 0; k < V; k++) {
      f4 x = F4(v[j] + column + 4 * k);
      UNROLL for (int r = 0; r < R; r++) acc[r][k] = MADD(w[r], x, acc[r][k]);
    }
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int k = 0; k < V; k++) STORE(out[r] + column + 4 * k, acc[r][k]);
}

// One tile of n tokens for R rows: updates out, max and sum.
INLINE void tile(const int R, const float* const* q, const float* const* k, int n, u32 rank, u32 width, float scale,
                 float* const* out, float* max, float* sum) {
  float s[R][TILE], correction[R];
  int j = 0;
  for (; j + 4 <= n; j += 4) scores(R, 4, q, k + j, width, (float(*)[TILE])(&s[0][j]));
  for (; j < n; j++) scores(R, 1, q, k + j, width, (float(*)[TILE])(&s[0][j]));
  UNROLL for (int r = 0; r < R; r++) {
    for (j = n; j < TILE; j++) s[r][j] = -__builtin_inff();
    f4 x[TILE / 4], top = splat4(max[r]), total = zero4();
    UNROLL for (int v = 0; v < TILE / 4; v++) {
      x[v] = MUL(F4(&s[r][4 * v]), splat4(scale));
      top = wasm_f32x4_max(top, x[v]);
    }
    top = wasm_f32x4_max(top, wasm_i32x4_shuffle(top, top, 2, 3, 0, 1));
    top = wasm_f32x4_max(top, wasm_i32x4_shuffle(top, top, 1, 0, 3, 2));
    UNROLL for (int v = 0; v < TILE / 4; v++) {
      x[v] = exp4(wasm_f32x4_sub(x[v], top));
      total = ADD(total, x[v]);
      STORE(&s[r][4 * v], x[v]);
    }
    float now = wasm_f32x4_extract_lane(top, 0);
    correction[r] = now == max[r] ? 1 : exp1(max[r] - now);
    max[r] = now;
    sum[r] = sum[r] * correction[r] + sum4(total);
  }
  u32 column = 0;
  for (; column + 16 <= rank; column += 16) values(R, 4, out, correction, s, k, n, column);
  for (; column + 4 <= rank; column += 4) values(R, 1, out, correction, s, k, n, column);
  for (; column < rank; column++) {
    for (int r = 0; r < R; r++) {
      float acc = out[r][column] * correction[r];
      for (j = 0; j < n; j++) acc += s[r][j] * k[j][column];
      out[r][column] = acc;
    }
  }
}

// Rows [from, to) of sequence s over tokens [first, last): unnormalized out, max and sum.
static void attend(const Plan* p, u32 s, u32 from, u32 to, u32 first, u32 last, float* out, float* max, float* sum,
                   float* scratch) {
  const Cache* cache = p->cache;
  u32 rank = cache->rank, width = rank + cache->rope;
  i32 length = p->lengths[s], queries = p->starts[s + 1] - p->starts[s];
  const float* q = p->q + p->starts[s] * p->h * width;
  for (u32 i = 0; i < (to - from) * rank; i++) out[i] = 0;
  for (u32 r = from; r < to; r++) max[r - from] = -__builtin_inff(), sum[r - from] = 0;
  for (u32 t = first; t < last; t += TILE) {
    int n = last - t < TILE ? last - t : TILE;
    // No row of the group sees the tile, nor any later one.
    if ((i32)t >= length - queries + (i32)((to - 1) / p->h) + 1) break;
    const float* k[TILE];
    for (int j = 0; j < n; j++) {
      u32 token = t + j;
      k[j] = cacheRow(cache, p->table[s * p->stride + token / cache->pageSize], token % cache->pageSize,
                      scratch + j * width);
    }
    for (u32 r = from; r < to;) {
      i32 sees = length - queries + (i32)(r / p->h) + 1 - (i32)t;
      i32 next = r + 1 < to ? length - queries + (i32)((r + 1) / p->h) + 1 - (i32)t : sees;
      sees = sees < n ? sees : n;
      next = next < n ? next : n;
      u32 at = r - from;
      const float* rows[2] = {q + r * width, q + (r + 1) * width};
      float* outs[2] = {out + at * rank, out + (at + 1) * rank};
      // Two rows go together where they see the same tokens: one that is not seen may hold anything, NaN included.
      if (r + 1 < to && sees == next) {
        if (sees > 0) tile(2, rows, k, sees, rank, width, p->scale, outs, max + at, sum + at);
        r += 2;
      } else {
        if (sees > 0) tile(1, rows, k, sees, rank, width, p->scale, outs, max + at, sum + at);
        r++;
      }
    }
  }
}

static void normalize(float* out, u32 rank, float sum) {
  float inverse = sum == 0 ? 0 : 1 / sum;
  for (u32 i = 0; i < rank; i++) out[i] *= inverse;
}

INLINE float lseOf(float max, float sum) { return sum == 0 ? -__builtin_inff() : max + (float)logDouble(sum); }

void runAttend(Command* c, u8* scratch) {
  Plan p = planOf(c);
  u32 rank = p.cache->rank;
  float* tiles = (float*)scratch;
  FOR_TASKS(t) {
    u32 item = t, partial = 0;
    for (u32 s = 0; s < p.b; s++) {
      u32 rows = (p.starts[s + 1] - p.starts[s]) * p.h, length = p.lengths[s];
      u32 splits = splitsOf(length, rows), groups = (rows + GROUP - 1) / GROUP;
      if (item >= splits * groups) {
        item -= splits * groups;
        if (splits > 1) partial += rows * splits;
        continue;
      }
      u32 split = item % splits, from = item / splits * GROUP, to = from + GROUP < rows ? from + GROUP : rows;
      u32 size = splitLength(length, rows), first = split * size, last = first + size < length ? first + size : length;
      float max[GROUP], sum[GROUP];
      u32 at = splits > 1 ? partial + split * rows + from : p.starts[s] * p.h + from;
      float* out = (splits > 1 ? p.partial : p.out) + at * rank;
      attend(&p, s, from, to, first, last, out, max, sum, tiles);
      for (u32 r = 0; r < to - from; r++) {
        if (splits > 1) {
          p.partialMl[2 * (at + r)] = max[r];
          p.partialMl[2 * (at + r) + 1] = sum[r];
        } else {
          normalize(out + r * rank, rank, sum[r]);
          p.lse[at + r] = lseOf(max[r], sum[r]);
        }
      }
      break;
    }
  }
}

static void combineRow(const Plan* p, u32 row, u32 partial, u32 rows, u32 splits) {
  u32 rank = p->cache->rank;
  float max = -__builtin_inff(), sum = 0, *out = p->out + row * rank;
  for (u32 i = 0; i < splits; i++) {
    float m = p->partialMl[2 * (partial + i * rows)];
    // A NaN becomes the maximum and stays it.
    if (m > max || m != m) max = m;
  }
  for (u32 k = 0; k < rank; k++) out[k] = 0;
  for (u32 i = 0; i < splits; i++) {
    u32 at = partial + i * rows;
    float l = p->partialMl[2 * at + 1];
    if (l == 0) continue;
    float weight = exp1(p->partialMl[2 * at] - max);
    const float* x = p->partial + at * rank;
    sum += weight * l;
    u32 k = 0;
    for (; k + 4 <= rank; k += 4) STORE(out + k, MADD(splat4(weight), F4(x + k), F4(out + k)));
    for (; k < rank; k++) out[k] += weight * x[k];
  }
  normalize(out, rank, sum);
  p->lse[row] = lseOf(max, sum);
}

// A task is one query row of a sequence that was split.
void runCombine(Command* c) {
  Plan p = planOf(c);
  FOR_TASKS(t) {
    u32 row = t, partial = 0;
    for (u32 s = 0; s < p.b; s++) {
      u32 rows = (p.starts[s + 1] - p.starts[s]) * p.h, splits = splitsOf(p.lengths[s], rows);
      if (row < rows) {
        if (splits > 1) combineRow(&p, p.starts[s] * p.h + row, partial + row, rows, splits);
        break;
      }
      row -= rows;
      if (splits > 1) partial += rows * splits;
    }
  }
}
