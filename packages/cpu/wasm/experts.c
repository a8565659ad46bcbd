// Mixture of experts: each selected expert is applied once, to all the rows that chose it.
#include "command.h"
#include "matrix.h"

typedef struct {
  Matrix gate, up, down;
} Expert;

enum { COLUMNS = 32 };

// Pairs (row, choice) grouped by expert, in row order: ids, pairs, experts, list, starts [E + 1], active [E + 1] with
// the number of experts that have rows in its last element.
void runExpertSort(Sync* sync, Command* c) {
  FOR_TASKS(t) {
    const i32* ids = PTR(i32, 0);
    u32 pairs = c->a[1], experts = c->a[2];
    i32 *list = PTR(i32, 3), *starts = PTR(i32, 4), *active = PTR(i32, 5);
    for (u32 e = 0; e <= experts; e++) starts[e] = 0;
    for (u32 p = 0; p < pairs; p++) {
      if ((u32)ids[p] < experts) starts[ids[p] + 1]++;
      else fail(sync, STATUS_ROW, ids[p], experts);
    }
    i32 count = 0;
    for (u32 e = 0; e < experts; e++) {
      if (starts[e + 1] > 0) active[count++] = e;
      starts[e + 1] += starts[e];
    }
    active[experts] = count;
    for (u32 p = 0; p < pairs; p++)
      if ((u32)ids[p] < experts) list[starts[ids[p]]++] = p;
    for (u32 e = experts; e > 0; e--) starts[e] = starts[e - 1];
    starts[0] = 0;
  }
}

typedef struct {
  const Expert* expert;
  const i32* list;
  u32 rows, from, to;
} Share;

// Task t of the grouped product with `o` output columns; 0 past the last. The command counts a task for every run of
// rows that there may be.
static int shareOf(Command* c, u32 t, u32 o, Share* s) {
  u32 experts = c->a[4], columnTasks = (o + COLUMNS - 1) / COLUMNS;
  const i32 *list = PTR(i32, 1), *starts = PTR(i32, 2), *active = PTR(i32, 3);
  for (i32 a = 0; a < active[experts]; a++) {
    u32 e = active[a], first = starts[e], rows = starts[e + 1] - first;
    u32 tasks = columnTasks * ((rows + MAX_ROWS - 1) / MAX_ROWS);
    if (t >= tasks) {
      t -= tasks;
      continue;
    }
    u32 row = t / columnTasks * MAX_ROWS;
    s->expert = PTR(Expert, 0) + e;
    s->list = list + first + row;
    s->rows = rows - row < MAX_ROWS ? rows - row : MAX_ROWS;
    s->from = t % columnTasks * COLUMNS;
    s->to = s->from + COLUMNS < o ? s->from + COLUMNS : o;
    return 1;
  }
  return 0;
}

// experts, list, starts, active, number of experts, x, choices, gate [pairs, inner], up [pairs, inner], inner, quantized.
void runExpertUp(Command* c, u8* scratch) {
  u32 inner = c->a[9];
  Share s;
  FOR_TASKS(t) {
    if (!shareOf(c, t, inner, &s)) continue;
    Rows rows = {.x = PTR(float, 5), .xStride = s.expert->gate.i, .quantized = {PTR(i16, 10), PTR(float, 11), 1},
                 .out = PTR(float, 7), .outStride = inner, .list = s.list, .xDivide = c->a[6], .n = s.rows};
    product(&s.expert->gate, s.from, s.to, &rows, (float*)scratch);
    rows.out = PTR(float, 8);
    product(&s.expert->up, s.from, s.to, &rows, (float*)scratch);
    for (u32 r = 0; r < s.rows; r++) {
      float *g = PTR(float, 7) + s.list[r] * inner, *u = PTR(float, 8) + s.list[r] * inner;
      u32 k = s.from;
      for (; k + 4 <= s.to; k += 4)
        STORE(g + k, MUL(wasm_f32x4_div(F4(g + k), ADD(splat4(1), exp4(wasm_f32x4_neg(F4(g + k))))), F4(u + k)));
      for (; k < s.to; k++) g[k] = g[k] / (1 + exp1(-g[k])) * u[k];
    }
  }
}

// experts, list, starts, active, number of experts, activations [pairs, inner], –, out [pairs, hidden], –, hidden, quantized.
void runExpertDown(Command* c, u8* scratch) {
  u32 hidden = c->a[9];
  Share s;
  FOR_TASKS(t) {
    if (!shareOf(c, t, hidden, &s)) continue;
    Rows rows = {.x = PTR(float, 5), .xStride = s.expert->down.i, .quantized = {PTR(i16, 10), PTR(float, 11), 1},
                 .out = PTR(float, 7), .outStride = hidden, .list = s.list, .xDivide = 1, .n = s.rows};
    product(&s.expert->down, s.from, s.to, &rows, (float*)scratch);
  }
}

// out[n] += Σ_k weights[n, k] · y[n, k], in the order of k: out, y, weights, choices, hidden; a task is a row.
void runExpertSum(Command* c) {
  u32 choices = c->a[3], d = c->a[4];
  FOR_TASKS(t) {
    float* out = PTR(float, 0) + t * d;
    for (u32 k = 0; k < choices; k++) {
      const float* y = PTR(float, 1) + (t * choices + k) * d;
      float weight = PTR(float, 2)[t * choices + k];
      u32 i = 0;
      for (; i + 4 <= d; i += 4) STORE(out + i, MADD(splat4(weight), F4(y + i), F4(out + i)));
      for (; i < d; i++) out[i] += weight * y[i];
    }
  }
}
