// Absorbed MLA attention over a paged cache.
//
// 1. A work item is a group of one sequence's query rows (queries × heads, which share the keys) and one split of its
//    tokens. Splits depend on lengths alone, and a row's sums on neither its group nor its neighbours, so results don't
//    depend on the number of threads.
// 2. Tokens come in tiles of up to 96: used where they lie in a float32 cache, else decoded once a tile. While a tile is
//    multiplied, the next one, of the same item or of the one that the thread takes next, is decoded, or just read, a
//    little at a time: memory works while the multiply-adds do.
// 3. Scores: 12 tokens × 96 columns of keys at a time against all rows of the group, three rows by three tokens: nine
//    sums of four lanes, which wait in memory between blocks. Nine sums and six operands are what V8 has registers for.
// 4. Online softmax, once a tile.
// 5. Values, the first `rank` columns of the keys: 48 columns at a time, again for all rows of the group, three rows by
//    12 columns: nine sums of broadcast probabilities times columns.
// 6. A sequence of one split is normalized in place; else combine adds the splits up by their LSE.
#include "command.h"
#include "tile.h"

enum { SPLIT_STEP = 64, LEAST_SPLIT = 256, BLOCK = 96, TOKENS = 12, STRIP = 48, MAX_GROUP = 64 };

typedef struct {
  const Cache* cache;
  const i32 *starts, *lengths, *table;
  u32 stride, b, h;
  float scale;
  float *out, *lse, *partial, *partialMl;
  const float* q;
  u32 group;  // rows of a work item
  i32 threads;
} Plan;

static Plan planOf(Command* c) {
  Plan p = {.out = PTR(float, 0), .lse = PTR(float, 1), .q = PTR(float, 2), .cache = PTR(Cache, 3),
            .starts = PTR(i32, 4), .lengths = PTR(i32, 5), .table = PTR(i32, 6), .stride = c->a[7], .b = c->a[8],
            .h = c->a[9], .scale = argFloat(c, 10), .partial = PTR(float, 11), .partialMl = PTR(float, 12),
            .group = c->a[13], .threads = c->a[14]};
  return p;
}

// Mirrored by src/fast/attention.ts, which sizes the partial results.
INLINE u32 splitLength(u32 length, u32 rows) {
  if (rows > 256) return length;
  u32 even = (length + 63) / 64;
  even = (even + SPLIT_STEP - 1) / SPLIT_STEP * SPLIT_STEP;
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

// sums[r][t] += q[r] · k[t] over n columns for R rows and T tokens, `width` apart.
INLINE void addScores(const int R, const int T, const float* q, const float* k, u32 width, u32 n, f4* sums) {
  f4 acc[R][T];
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int t = 0; t < T; t++) acc[r][t] = sums[r * TOKENS + t];
  ROLLED for (const float* end = q + n; q != end; q += 4, k += 4) {
    f4 a[R];
    UNROLL for (int r = 0; r < R; r++) a[r] = F4(q + r * width);
    UNROLL for (int t = 0; t < T; t++) {
      f4 b = F4(k + t * width);
      UNROLL for (int r = 0; r < R; r++) acc[r][t] = MADD(a[r], b, acc[r][t]);
    }
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int t = 0; t < T; t++) sums[r * TOKENS + t] = acc[r][t];
}

// s[r][0 … count) = q[r] · k[…] for all rows and `count` tokens, 4 or TOKENS; `sums` holds TOKENS vectors a row.
INLINE void scoresOf(const float* q, u32 rows, u32 width, const float* k, u32 count, float* s, f4* sums, Tile* next) {
  u32 whole = width / 4 * 4;
  for (u32 i = 0; i < rows * TOKENS; i++) sums[i] = zero4();
  for (u32 from = 0; from < whole; from += BLOCK) {
    u32 n = from + BLOCK < whole ? BLOCK : whole - from;
    for (u32 r = 0, some; r < rows; r += some) {
      const float* x = q + r * width + from;
      f4* to = sums + r * TOKENS;
      some = count == TOKENS ? together(rows - r) : rows - r >= 2 ? 2 : 1;
      advance(next);
      if (some == 3) for (u32 t = 0; t < count; t += 3) addScores(3, 3, x, k + t * width + from, width, n, to + t);
      else if (some == 2) for (u32 t = 0; t < count; t += 4) addScores(2, 4, x, k + t * width + from, width, n, to + t);
      else for (u32 t = 0; t < count; t += 4) addScores(1, 4, x, k + t * width + from, width, n, to + t);
    }
  }
  for (u32 r = 0; r < rows; r++, s += TILE, sums += TOKENS) {
    for (u32 t = 0; t < count; t += 4) STORE(s + t, sum4x4(sums + t));
    for (u32 i = whole; i < width; i++)
      for (u32 t = 0; t < count; t++) s[t] += q[r * width + i] * k[t * width + i];
  }
}

// DeepSeek's width is compiled in: all addresses are then constants away from two pointers.
static void scores(const float* q, u32 rows, u32 width, const float* k, u32 count, float* s, f4* sums,
                   Tile* next) {
  if (width == 576) scoresOf(q, rows, 576, k, count, s, sums, next);
  else scoresOf(q, rows, width, k, count, s, sums, next);
}

// s[0 … sees) to e^(scale · s − max), zeros up to the next four; updates max and sum and gives what `out` is to be
// multiplied by.
static float softmax(float* s, u32 sees, float scale, float* max, float* sum) {
  for (u32 j = sees; j % 4; j++) s[j] = -__builtin_inff();
  f4 top = splat4(*max), total = zero4();
  for (u32 j = 0; j < sees; j += 4) {
    f4 x = MUL(F4(s + j), splat4(scale));
    STORE(s + j, x);
    top = wasm_f32x4_pmax(top, x);
  }
  top = wasm_f32x4_pmax(top, wasm_i32x4_shuffle(top, top, 2, 3, 0, 1));
  top = wasm_f32x4_pmax(top, wasm_i32x4_shuffle(top, top, 1, 0, 3, 2));
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
  out += column;
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int k = 0; k < V; k++)
    acc[r][k] = MUL(F4(out + r * rank + 4 * k), splat4(correction[r]));
  ROLLED for (const float* end = p + n; p != end; p++, v++) {
    const float* x = *v + column;
    f4 w[R];
    UNROLL for (int r = 0; r < R; r++) w[r] = SPLAT(p + r * TILE);
    UNROLL for (int k = 0; k < V; k++) {
      f4 b = F4(x + 4 * k);
      UNROLL for (int r = 0; r < R; r++) acc[r][k] = MADD(w[r], b, acc[r][k]);
    }
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int k = 0; k < V; k++)
    STORE(out + r * rank + 4 * k, acc[r][k]);
}

// Columns [column, column + count) of the rows' outputs; count is STRIP, 16, 4 or 1. Rows go together where they see the
// same tokens: one that is not seen may hold anything, NaN included.
INLINE void addStrip(float* out, u32 rows, u32 rank, const float* correction, const float* p, const float* const* v,
                     const u32* sees, u32 column, u32 count, Tile* next) {
  for (u32 r = 0, some; r < rows; r += some, out += some * rank, correction += some, p += some * TILE) {
    u32 n = sees[r], alike = 1, end = column + count;
    while (r + alike < rows && alike < 5 && sees[r + alike] == n) alike++;
    some = count == STRIP ? together(alike) : alike >= 2 ? 2 : 1;
    advance(next);
    if (n == 0) continue;
    if (some == 3)
      for (u32 c = column; c < end; c += 12) advance(next), values(3, 3, out, rank, correction, p, v, n, c);
    else if (count == 4 && some == 2) values(2, 1, out, rank, correction, p, v, n, column);
    else if (count == 4) values(1, 1, out, rank, correction, p, v, n, column);
    else if (some == 2) for (u32 c = column; c < end; c += 16) values(2, 4, out, rank, correction, p, v, n, c);
    else for (u32 c = column; c < end; c += 16) values(1, 4, out, rank, correction, p, v, n, c);
  }
}

static void addValues(float* out, u32 rows, u32 rank, const float* correction, const float* p, const float* const* v,
                      const u32* sees, Tile* next) {
  u32 column = 0;
  for (; column + STRIP <= rank; column += STRIP) addStrip(out, rows, rank, correction, p, v, sees, column, STRIP, next);
  for (; column + 16 <= rank; column += 16) addStrip(out, rows, rank, correction, p, v, sees, column, 16, next);
  for (; column + 4 <= rank; column += 4) addStrip(out, rows, rank, correction, p, v, sees, column, 4, next);
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

// Query rows [from, to) of sequence s over tokens [first, last), in tiles of `step`.
typedef struct {
  u32 s, from, to, first, last, step, splits, at;
} Item;

// Item t; its place among the rows of `out`, or of the partial results where the sequence is split.
static void openItem(const Plan* p, u32 t, Item* item) {
  u32 partial = 0;
  for (u32 s = 0;; s++) {
    u32 rows = (p->starts[s + 1] - p->starts[s]) * p->h, length = p->lengths[s];
    u32 splits = splitsOf(length, rows), groups = (rows + p->group - 1) / p->group;
    if (t < splits * groups) {
      u32 size = splitLength(length, rows), split = t % splits, from = t / splits * p->group;
      u32 first = split * size, last = first + size < length ? first + size : length, to = from + p->group;
      to = to < rows ? to : rows;
      // No row of the group sees what comes after.
      i32 seen = (i32)(length - rows / p->h + (to - 1) / p->h + 1);
      if (seen < (i32)last) last = seen < (i32)first ? first : (u32)seen;
      // Tiles of about the same size, whole blocks of tokens.
      u32 n = last - first, tiles = (n + TILE - 1) / TILE;
      u32 step = n == 0 ? 0 : ((n + tiles - 1) / tiles + TOKENS - 1) / TOKENS * TOKENS;
      item->s = s, item->from = from, item->to = to, item->first = first, item->last = last, item->step = step;
      item->splits = splits, item->at = splits > 1 ? partial + split * rows + from : p->starts[s] * p->h + from;
      return;
    }
    t -= splits * groups;
    if (splits > 1) partial += rows * splits;
  }
}

// The item's tile from token t on.
static void openItemTile(Tile* tile, const Plan* p, const Item* item, u32 t) {
  u32 n = item->last - t < item->step ? item->last - t : item->step;
  openTile(tile, p->cache, p->table + item->s * p->stride, t, n);
}

// One tile: unnormalized out, max and sum of all rows; makes the next tile ready meanwhile.
static void attend(const Plan* p, const Item* item, Tile* tile, Tile* next, float* out, float* max, float* sum,
                   float* scratch) {
  u32 rank = p->cache->rank, width = rank + p->cache->rope, rows = item->to - item->from, n = tile->n;
  i32 length = p->lengths[item->s], queries = p->starts[item->s + 1] - p->starts[item->s];
  const float *q = p->q + (p->starts[item->s] * p->h + item->from) * width, *const* k = tile->k;
  f4* sums = (f4*)scratch;
  float* weights = (float*)(sums + MAX_GROUP * TOKENS);
  float *beside = weights + MAX_GROUP * TILE, correction[MAX_GROUP];
  u32 sees[MAX_GROUP];
  for (u32 j = 0, count; j < n; j += count) {
    while (tile->ready < n && tile->ready < j + TOKENS) advancePart(tile, 1);
    u32 run = 1;
    while (run < TOKENS && j + run < n && k[j + run] == k[j] + run * width) run++;
    count = run >= TOKENS ? TOKENS : 4;
    // Few tokens, or tokens of several pages, are put side by side; scores of those that aren't there are not used.
    for (u32 i = 0; i < count && run < count; i++) copyFloats(beside + i * width, k[j + i < n ? j + i : n - 1], width);
    scores(q, rows, width, run < count ? beside : k[j], count, weights + j, sums, next);
  }
  for (u32 r = 0; r < rows; r++) {
    i32 seen = length - queries + (i32)((item->from + r) / p->h) + 1 - (i32)tile->first;
    sees[r] = seen < 0 ? 0 : seen < (i32)n ? (u32)seen : n;
    correction[r] = sees[r] > 0 ? softmax(weights + r * TILE, sees[r], p->scale, max + r, sum + r) : 1;
  }
  addValues(out, rows, rank, correction, weights, k, sees, next);
}

static void normalize(float* out, u32 rank, float sum) {
  float inverse = sum == 0 ? 0 : 1 / sum;
  for (u32 i = 0; i < rank; i++) out[i] *= inverse;
}

INLINE float lseOf(float max, float sum) { return sum == 0 ? -__builtin_inff() : max + (float)logDouble(sum); }

static i32 takeItem(Command* c, const Plan* p, Item* item, Tile* tile) {
  i32 t = claim(c);
  if (t >= c->tasks) return t;
  openItem(p, t, item);
  openItemTile(tile, p, item, item->first);
  return t;
}

void runAttend(Command* c, u8* scratch) {
  Plan p = planOf(c);
  u32 rank = p.cache->rank, width = rank + p.cache->rope;
  Tile tiles[2], *tile = tiles, *next = tiles + 1;
  for (u32 i = 0; i < 2; i++) {
    tiles[i].rows = (float*)scratch + i * TILE * width;
    tiles[i].n = tiles[i].ready = tiles[i].seen = 0;
    tiles[i].q = tiles[i].qEnd = 0;
  }
  float* work = (float*)scratch + 2 * TILE * 1024;
  Item item, following;
  i32 done = 0, t = takeItem(c, &p, &item, tile);
  for (; t < c->tasks; done++, item = following) {
    float max[MAX_GROUP], sum[MAX_GROUP];
    float* out = (item.splits > 1 ? p.partial : p.out) + item.at * rank;
    u32 rows = item.to - item.from;
    i32 claimed = -1;
    for (u32 i = 0; i < rows * rank; i++) out[i] = 0;
    for (u32 r = 0; r < rows; r++) max[r] = -__builtin_inff(), sum[r] = 0;
    for (u32 at = item.first;; at += item.step) {
      int more = at + item.step < item.last;
      next->n = 0;
      if (more) {
        openItemTile(next, &p, &item, at + item.step);
      } else if (__atomic_load_n(&c->counter, __ATOMIC_RELAXED) + p.threads <= c->tasks) {
        // Only while each thread finds another: of the last items, a thread takes one when it is free.
        claimed = takeItem(c, &p, &following, next);
        if (claimed < c->tasks) {
          next->q = p.q + (p.starts[following.s] * p.h + following.from) * width;
          next->qEnd = next->q + (following.to - following.from) * width;
        }
      }
      if (tile->n > 0) attend(&p, &item, tile, next, out, max, sum, work);
      Tile* used = tile;
      tile = next, next = used;
      if (!more) break;
    }
    for (u32 r = 0; r < rows; r++) {
      if (item.splits > 1) {
        p.partialMl[2 * (item.at + r)] = max[r];
        p.partialMl[2 * (item.at + r) + 1] = sum[r];
      } else {
        normalize(out + r * rank, rank, sum[r]);
        p.lse[item.at + r] = lseOf(max[r], sum[r]);
      }
    }
    t = claimed < 0 ? takeItem(c, &p, &following, tile) : claimed;
  }
  finish(c, done);
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
