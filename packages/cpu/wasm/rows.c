// Row-wise operations: norms, rotary, element-wise, row copies.
#include "command.h"
#include "matrix.h"

enum { ROWS_PER_TASK = 8, ELEMENTS_PER_TASK = 16384 };

static void copyWords(u32* out, const u32* x, u32 n) {
  u32 i = 0;
  for (; i + 4 <= n; i += 4) STORE(out + i, F4(x + i));
  for (; i < n; i++) out[i] = x[i];
}

static void rmsNorm(float* out, const float* x, const float* w, int d, float eps) {
  f4 sum = zero4();
  int i = 0;
  for (; i + 4 <= d; i += 4) sum = ADD(sum, MUL(F4(x + i), F4(x + i)));
  double total = sum4(sum);
  for (; i < d; i++) total += x[i] * x[i];
  float scale = (float)(1 / __builtin_sqrt(total / d + eps));
  f4 s = splat4(scale);
  for (i = 0; i + 4 <= d; i += 4) STORE(out + i, MUL(MUL(F4(x + i), s), F4(w + i)));
  for (; i < d; i++) out[i] = x[i] * scale * w[i];
}

static void rotate(float* x, const float* angles, int pairs, int interleaved) {
  for (int j = 0; j < pairs; j++) {
    float cos = angles[2 * j], sin = angles[2 * j + 1];
    float* a = x + (interleaved ? 2 * j : j);
    float* b = interleaved ? a + 1 : a + pairs;
    float u = *a, v = *b;
    *a = u * cos - v * sin;
    *b = v * cos + u * sin;
  }
}

static void silu(float* out, const float* g, const float* u, u32 n) {
  u32 i = 0;
  f4 one = splat4(1);
  for (; i + 4 <= n; i += 4)
    STORE(out + i, MUL(wasm_f32x4_div(F4(g + i), ADD(one, exp4(wasm_f32x4_neg(F4(g + i))))), F4(u + i)));
  for (; i < n; i++) out[i] = g[i] / (1 + exp1(-g[i])) * u[i];
}

static void addRows(float* x, const float* y, u32 n) {
  u32 i = 0;
  for (; i + 4 <= n; i += 4) STORE(x + i, ADD(F4(x + i), F4(y + i)));
  for (; i < n; i++) x[i] += y[i];
}

static int argmax(const float* x, int n) {
  int best = 0;
  for (int i = 1; i < n; i++)
    if (x[i] > x[best] || (x[best] != x[best] && x[i] == x[i])) best = i;
  return best;
}

static void row(Sync* sync, Command* c, int r) {
  switch (c->op) {
    case OP_EMBED: {  // out, weight, ids
      const Matrix* w = PTR(Matrix, 1);
      i32 id = PTR(i32, 2)[r];
      float* out = PTR(float, 0) + r * w->i;
      if (id < 0 || id >= (i32)w->o) {
        fail(sync, STATUS_ROW, id, w->o);
        for (u32 i = 0; i < w->i; i++) out[i] = 0;
      } else {
        unpackRow(w, id, out);
      }
      return;
    }
    case OP_GATHER: {  // out, x, rows, d, number of x's rows
      u32 d = c->a[3];
      i32 from = PTR(i32, 2)[r];
      if (from < 0 || from >= (i32)c->a[4]) {
        fail(sync, STATUS_ROW, from, c->a[4]);
        return;
      }
      return copyWords(PTR(u32, 0) + r * d, PTR(u32, 1) + from * d, d);
    }
    case OP_RMSNORM: {  // out, x, weight, d, eps
      int d = c->a[3];
      return rmsNorm(PTR(float, 0) + r * d, PTR(float, 1) + r * d, PTR(float, 2), d, argFloat(c, 4));
    }
    case OP_COPYCOLUMNS:  // out + start, out stride, x + start, x stride, width
      return copyWords(PTR(u32, 0) + r * c->a[1], PTR(u32, 2) + r * c->a[3], c->a[4]);
    case OP_ROTARY: {  // x + start, d, table, positions, pairs, interleaved, rows of one position
      int pairs = c->a[4];
      const float* angles = PTR(float, 2) + PTR(i32, 3)[r / c->a[6]] * pairs * 2;
      return rotate(PTR(float, 0) + r * c->a[1], angles, pairs, c->a[5]);
    }
    case OP_ARGMAX:  // ids, logits, vocab
      PTR(i32, 0)[r] = argmax(PTR(float, 1) + r * c->a[2], c->a[2]);
  }
}

static void elements(Command* c, u32 start, u32 n) {
  switch (c->op) {
    case OP_COPY: return copyWords(PTR(u32, 0) + start, PTR(u32, 1) + start, n);
    case OP_ADD: return addRows(PTR(float, 0) + start, PTR(float, 1) + start, n);
    case OP_SILU: return silu(PTR(float, 0) + start, PTR(float, 1) + start, PTR(float, 2) + start, n);
  }
}

// a[23] is the number of rows or of elements.
void runRows(Sync* sync, Command* c) {
  u32 n = c->a[23];
  if (c->op == OP_COPY || c->op == OP_ADD || c->op == OP_SILU) {
    FOR_TASKS(t) {
      u32 start = (u32)t * ELEMENTS_PER_TASK, left = n - start;
      elements(c, start, left < ELEMENTS_PER_TASK ? left : ELEMENTS_PER_TASK);
    }
  } else {
    FOR_TASKS(t)
    for (u32 r = (u32)t * ROWS_PER_TASK; r < ((u32)t + 1) * ROWS_PER_TASK && r < n; r++) row(sync, c, r);
  }
}
