// Naive attention over a run of one sequence's tokens, whose keys and values a product with kv_b has rebuilt.
#include "cache.h"
#include "command.h"

// Cache, block table row, first token, latent [n, rank], rope [n, rope]; a task is a token.
static void decodeRows(Command* c) {
  const Cache* cache = PTR(Cache, 0);
  u32 rank = cache->rank, rope = cache->rope;
  float scratch[1024];
  FOR_TASKS(t) {
    u32 token = c->a[2] + t;
    const float* row = cacheRow(cache, PTR(i32, 1)[token / cache->pageSize], token % cache->pageSize, scratch);
    for (u32 i = 0; i < rank; i++) PTR(float, 3)[t * rank + i] = row[i];
    for (u32 i = 0; i < rope; i++) PTR(float, 4)[t * rope + i] = row[rank + i];
  }
}

static float dot(const float* a, const float* b, u32 n) {
  f4 sum = zero4();
  u32 i = 0;
  for (; i + 4 <= n; i += 4) sum = MADD(F4(a + i), F4(b + i), sum);
  float total = sum4(sum);
  for (; i < n; i++) total += a[i] * b[i];
  return total;
}

// q [queries, h, nope + rope], full [n, h, nope + v], rope [n, rope], out [queries, h, v], state [queries, h, 2];
// h, nope, rope, v, first token, n, visible of query 0 (signed), scale. A task is a query's head.
static void attendRun(Command* c) {
  u32 h = c->a[5], nope = c->a[6], rope = c->a[7], v = c->a[8], first = c->a[9], n = c->a[10];
  float scale = argFloat(c, 12);
  FOR_TASKS(t) {
    const float* q = PTR(float, 0) + t * (nope + rope);
    float *out = PTR(float, 3) + t * v, *state = PTR(float, 4) + t * 2;
    if (first == 0) {
      state[0] = -__builtin_inff();
      state[1] = 0;
      for (u32 k = 0; k < v; k++) out[k] = 0;
    }
    i32 sees = (i32)c->a[11] + (i32)(t / h) - (i32)first;
    for (i32 j = 0; j < (i32)n && j < sees; j++) {
      const float* full = PTR(float, 1) + (j * h + t % h) * (nope + v);
      float s = scale * (dot(q, full, nope) + dot(q + nope, PTR(float, 2) + j * rope, rope));
      float max = s > state[0] || s != s ? s : state[0];
      float correction = exp1(state[0] - max), p = exp1(s - max);
      state[0] = max;
      state[1] = state[1] * correction + p;
      u32 k = 0;
      for (; k + 4 <= v; k += 4)
        STORE(out + k, MADD(splat4(p), F4(full + nope + k), MUL(F4(out + k), splat4(correction))));
      for (; k < v; k++) out[k] = out[k] * correction + p * full[nope + k];
    }
  }
}

// out [rows, v], state [rows, 2], v; a task is a row.
static void normalizeRows(Command* c) {
  u32 v = c->a[2];
  FOR_TASKS(t) {
    float sum = PTR(float, 1)[2 * t + 1];
    for (u32 k = 0; k < v; k++) PTR(float, 0)[t * v + k] *= sum == 0 ? 0 : 1 / sum;
  }
}

void runNaive(Command* c) {
  if (c->op == OP_NAIVE_ROWS) decodeRows(c);
  else if (c->op == OP_NAIVE_ATTEND) attendRun(c);
  else normalizeRows(c);
}
