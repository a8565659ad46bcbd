// Absorbed MLA attention over a paged cache.
//
// 1. A work item is a group of one sequence's query rows (queries × heads, which share the keys) and one split of its
//    tokens. Splits depend on lengths alone, and a row's sums on neither its group nor its neighbours, so results don't
//    depend on the number of threads.
// 2. Tokens come in tiles of 64: used where they lie in a float32 cache, else decoded once a tile.
// 3. Scores: 1 KiB of keys (4 tokens × 64 columns) at a time against all rows of the group, two rows at a time: eight
//    sums of four lanes, which wait in memory between blocks. The prefetcher fetches the next block meanwhile.
// 4. Online softmax, once a tile.
// 5. Values, the first `rank` columns of the keys: 16 columns at a time, again for all rows of the group, two at a time:
//    eight sums of broadcast probabilities times columns.
// 6. A sequence of one split is normalized in place; else combine adds the splits up by their LSE.
#include "cache.h"
#include "command.h"

enum { TILE = 64, LEAST_SPLIT = 256, BLOCK = 64, TOKENS = 4, MAX_GROUP = 64 };

typedef struct {
  const Cache* cache;
  const i32 *starts, *lengths, *table;
  u32 stride, b, h;
  float scale;
  float *out, *lse, *partial, *partialMl;
  const float* q;
  u32 group;  // rows of a work item
} Plan;

static Plan planOf(Command* c) {
  Plan p = {.out = PTR(float, 0), .lse = PTR(float, 1), .q = PTR(float, 2), .cache = PTR(Cache, 3),
            .starts = PTR(i32, 4), .lengths = PTR(i32, 5), .table = PTR(i32, 6), .stride = c->a[7], .b = c->a[8],
            .h = c->a[9], .scale = argFloat(c, 10), .partial = PTR(float, 11), .partialMl = PTR(float, 12),
            .group = c->a[13]};
  return p;
}

// Mirrored by src/fast/attention.ts, which sizes the partial results.
INLINE u32 splitLength(u32 length, u32 rows) {
  if (rows > 256) return length;
  u32 even = (length + 63) / 64;
  even = (even + TILE - 1) / TILE * TILE;
  return even < LEAST_SPLIT ? LEAST_SPLIT : even;
}

INLINE u32 splitsOf(u32 length, u32 rows) {
  return length == 0 ? 1 : (length + splitLength(length, rows) - 1) / splitLength(length, rows);
}

#define UNROLL _Pragma("clang loop unroll(full)")
// V8 moves the arithmetic of a block behind its loads: a block of several steps would spill what was loaded.
#define ROLLED _Pragma("clang loop unroll(disable)")

// Sums of four vectors' lanes, each in the order of sum4.
INLINE f4 sum4x4(const f4* x) {
  f4 ab = ADD(wasm_i32x4_shuffle(x[0], x[1], 0, 4, 1, 5), wasm_i32x4_shuffle(x[0], x[1], 2, 6, 3, 7));
  f4 cd = ADD(wasm_i32x4_shuffle(x[2], x[3], 0, 4, 1, 5), wasm_i32x4_shuffle(x[2], x[3], 2, 6, 3, 7));
  return ADD(wasm_i32x4_shuffle(ab, cd, 0, 1, 4, 5), wasm_i32x4_shuffle(ab, cd, 2, 3, 6, 7));
}

// sums[r][t] += q[r] · k[t] over columns [from, to) for R rows and TOKENS tokens, `width` apart.
INLINE void addScores(const int R, const float* q, const float* k, u32 width, u32 from, u32 to, f4* sums) {
  f4 acc[R][TOKENS];
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int t = 0; t < TOKENS; t++) acc[r][t] = sums[r * TOKENS + t];
  ROLLED for (u32 i = from; i < to; i += 4) {
    f4 a[R];
    UNROLL for (int r = 0; r < R; r++) a[r] = F4(q + r * width + i);
    UNROLL for (int t = 0; t < TOKENS; t++) {
      f4 b = F4(k + t * width + i);
      UNROLL for (int r = 0; r < R; r++) acc[r][t] = MADD(a[r], b, acc[r][t]);
    }
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int t = 0; t < TOKENS; t++) sums[r * TOKENS + t] = acc[r][t];
}

// s[r][0 … 4) = q[r] · k[…] for all rows; `sums` holds TOKENS vectors a row.
INLINE void scoresOf(const float* q, u32 rows, u32 width, const float* k, float* s, f4* sums) {
  u32 whole = width / 4 * 4;
  for (u32 i = 0; i < rows * TOKENS; i++) sums[i] = zero4();
  for (u32 from = 0; from < whole; from += BLOCK) {
    u32 to = from + BLOCK < whole ? from + BLOCK : whole, r = 0;
    for (; r + 2 <= rows; r += 2) addScores(2, q + r * width, k, width, from, to, sums + r * TOKENS);
    if (r < rows) addScores(1, q + r * width, k, width, from, to, sums + r * TOKENS);
  }
  for (u32 r = 0; r < rows; r++, s += TILE, sums += TOKENS) {
    STORE(s, sum4x4(sums));
    for (u32 i = whole; i < width; i++)
      for (int t = 0; t < TOKENS; t++) s[t] += q[r * width + i] * k[t * width + i];
  }
}

// DeepSeek's width is compiled in: all addresses are then constants away from two pointers.
static void scores(const float* q, u32 rows, u32 width, const float* k, float* s, f4* sums) {
  if (width == 576) scoresOf(q, rows, 576, k, s, sums);
  else scoresOf(q, rows, width, k, s, sums);
}

// s[0 … sees) to e^(scale · s − max), zeros up to the next four; updates max and sum and gives what `out` is to be
// multiplied by.
static float softmax(float* s, u32 sees, float scale, float* max, float* sum) {
  for (u32 j = sees; j % 4; j++) s[j] = -__builtin_inff();
  f4 top = splat4(*max), total = zero4();
  for (u32 j = 0; j < sees; j += 4) {
    f4 x = MUL(F4(s + j), splat4(scale));
    STORE(s + j, x);
    top = wasm_f32x4_max(top, x);
  }
  top = wasm_f32x4_max(top, wasm_i32x4_shuffle(top, top, 2, 3, 0, 1));
  top = wasm_f32x4_max(top, wasm_i32x4_shuffle(top, top, 1, 0, 3, 2));
  for (u32 j = 0; j < sees; j += 4) {
    f4 x = exp4(wasm_f32x4_sub(F4(s + j), top));
    total = ADD(total, x);
    STORE(s + j, x);
  }
  float now = wasm_f32x4_extract_lane(top, 0), correction = now == *max ? 1 : exp1(*max - now);
  *max = now;
  *sum = *sum * correction + sum4(total);
  return correction;
}

// out[r][column …] = out · correction + Σ_j p[r][j] · v[j][column …] for R rows and V vectors of columns.
INLINE void values(const int R, const int V, float* out, u32 rank, const float* correction, const float* p,
                   const float* const* v, u32 n, u32 column) {
  f4 acc[R][V];
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int k = 0; k < V; k++)
    acc[r][k] = MUL(F4(out + r * rank + column + 4 * k), splat4(correction[r]));
  ROLLED for (u32 j = 0; j < n; j++) {
    f4 w[R];
    UNROLL for (int r = 0; r < R; r++) w[r] = SPLAT(p + r * TILE + j);
    UNROLL for (int k = 0; k < V; k++) {
      f4 x = F4(v[j] + column + 4 * k);
      UNROLL for (int r = 0; r < R; r++) acc[r][k] = MADD(w[r], x, acc[r][k]);
    }
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int k = 0; k < V; k++)
    STORE(out + r * rank + column + 4 * k, acc[r][k]);
}

// All columns of the rows' outputs. Two rows go together where they see the same tokens: one that is not seen may hold
// anything, NaN included.
static void addValues(float* out, u32 rows, u32 rank, const float* correction, const float* p, const float* const* v,
                      const u32* sees) {
  u32 column = 0;
  for (; column + 4 <= rank; column += column + 16 <= rank ? 16 : 4) {
    int wide = column + 16 <= rank;
    for (u32 r = 0; r < rows;) {
      int two = r + 1 < rows && sees[r] == sees[r + 1];
      float* to = out + r * rank;
      if (sees[r] == 0) {
        r++;
        continue;
      }
      if (two && wide) values(2, 4, to, rank, correction + r, p + r * TILE, v, sees[r], column);
      else if (two) values(2, 1, to, rank, correction + r, p + r * TILE, v, sees[r], column);
      else if (wide) values(1, 4, to, rank, correction + r, p + r * TILE, v, sees[r], column);
      else values(1, 1, to, rank, correction + r, p + r * TILE, v, sees[r], column);
      r += two ? 2 : 1;
    }
  }
  for (; column < rank; column++) {
    for (u32 r = 0; r < rows; r++) {
      float acc = out[r * rank + column] * correction[r];
      for (u32 j = 0; j < sees[r]; j++) acc += p[r * TILE + j] * v[j][column];
      out[r * rank + column] = acc;
    }
  }
}

static void copyFloats(float* out, const float* x, u32 n) {
  u32 i = 0;
  for (; i + 4 <= n; i += 4) STORE(out + i, F4(x + i));
  for (; i < n; i++) out[i] = x[i];
}

// Rows [from, to) of sequence s over tokens [first, last): unnormalized out, max and sum.
static void attend(const Plan* p, u32 s, u32 from, u32 to, u32 first, u32 last, float* out, float* max, float* sum,
                   float* scratch) {
  const Cache* cache = p->cache;
  u32 rank = cache->rank, width = rank + cache->rope, rows = to - from;
  i32 length = p->lengths[s], queries = p->starts[s + 1] - p->starts[s];
  const float* q = p->q + (p->starts[s] * p->h + from) * width;
  f4* sums = (f4*)(scratch + TILE * 1024);
  float* weights = (float*)(sums + MAX_GROUP * TOKENS);
  float* beside = weights + MAX_GROUP * TILE;
  for (u32 i = 0; i < rows * rank; i++) out[i] = 0;
  for (u32 r = 0; r < rows; r++) max[r] = -__builtin_inff(), sum[r] = 0;
  for (u32 t = first; t < last; t += TILE) {
    u32 n = last - t < TILE ? last - t : TILE, sees[MAX_GROUP];
    float correction[MAX_GROUP];
    // No row of the group sees the tile, nor any later one.
    if ((i32)t >= length - queries + (i32)((to - 1) / p->h) + 1) break;
    const float* k[TILE];
    for (u32 j = 0; j < n; j += TOKENS) {
      int together = j + TOKENS <= n;
      for (u32 i = j; i < j + TOKENS && i < n; i++) {
        u32 token = t + i;
        k[i] = cacheRow(cache, p->table[s * p->stride + token / cache->pageSize], token % cache->pageSize,
                        scratch + i * width);
        if (k[i] != k[j] + (i - j) * width) together = 0;
      }
      // Few tokens, or tokens of several pages, are put side by side; scores of those that aren't there are not used.
      for (u32 i = 0; i < TOKENS && !together; i++) copyFloats(beside + i * width, k[j + i < n ? j + i : n - 1], width);
      scores(q, rows, width, together ? k[j] : beside, weights + j, sums);
    }
    for (u32 r = 0; r < rows; r++) {
      i32 seen = length - queries + (i32)((from + r) / p->h) + 1 - (i32)t;
      sees[r] = seen < 0 ? 0 : seen < (i32)n ? (u32)seen : n;
      correction[r] = sees[r] > 0 ? softmax(weights + r * TILE, sees[r], p->scale, max + r, sum + r) : 1;
    }
    addValues(out, rows, rank, correction, weights, k, sees);
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
      u32 splits = splitsOf(length, rows), groups = (rows + p.group - 1) / p.group;
      if (item >= splits * groups) {
        item -= splits * groups;
        if (splits > 1) partial += rows * splits;
        continue;
      }
      u32 split = item % splits, from = item / splits * p.group, to = from + p.group < rows ? from + p.group : rows;
      u32 size = splitLength(length, rows), first = split * size, last = first + size < length ? first + size : length;
      float max[MAX_GROUP], sum[MAX_GROUP];
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
