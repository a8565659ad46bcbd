// Choice of experts in double precision, as the reference makes it: DeepSeek-V2 (arXiv 2405.04434, §2.2), V3's noaux_tc
// (arXiv 2412.19437, §2.1.2).
#include "command.h"

enum { MAX_EXPERTS = 1024, SOFTMAX = 0, GREEDY = 0, GROUP_LIMITED = 1, NOAUX_TC = 2 };

// Index of the largest value that is not yet taken; ties go to the lower index.
static int takeLargest(const double* x, u8* taken, int n) {
  int best = -1;
  for (int i = 0; i < n; i++)
    if (!taken[i] && (best < 0 || x[i] > x[best])) best = i;
  taken[best] = 1;
  return best;
}

static void keepGroups(double* choice, int n, int groups, int keep, int best) {
  double score[MAX_EXPERTS];
  u8 taken[MAX_EXPERTS], kept[MAX_EXPERTS];
  int size = n / groups;
  for (int g = 0; g < groups; g++) {
    score[g] = 0;
    kept[g] = 0;
    for (int i = 0; i < size; i++) taken[i] = 0;
    for (int k = 0; k < best && k < size; k++) score[g] += choice[g * size + takeLargest(choice + g * size, taken, size)];
  }
  for (int k = 0; k < keep && k < groups; k++) takeLargest(score, kept, groups);
  for (int i = 0; i < n; i++)
    if (!kept[i / size]) choice[i] = -__builtin_inf();
}

// ids, weights, logits, bias or 0, experts, topK, scoring, method, groups, groups kept, normalize, scale; a task is a row.
void runRoute(Command* c) {
  int n = c->a[4], topK = c->a[5], method = c->a[7], groups = c->a[8];
  FOR_TASKS(t) {
    const float *logits = PTR(float, 2) + t * n, *bias = PTR(float, 3);
    double score[MAX_EXPERTS], choice[MAX_EXPERTS], max = -__builtin_inf(), sum = 0;
    for (int i = 0; i < n; i++)
      if (logits[i] > max) max = logits[i];
    for (int i = 0; i < n; i++) {
      score[i] = c->a[6] == SOFTMAX ? expDouble(logits[i] - max) : 1 / (1 + expDouble(-(double)logits[i]));
      sum += score[i];
    }
    for (int i = 0; i < n; i++) {
      if (c->a[6] == SOFTMAX) score[i] /= sum;
      choice[i] = score[i] + (bias ? bias[i] : 0);
    }
    if (method != GREEDY && groups > 1) keepGroups(choice, n, groups, c->a[9], method == NOAUX_TC ? 2 : 1);
    u8 taken[MAX_EXPERTS];
    for (int i = 0; i < n; i++) taken[i] = 0;
    i32* ids = PTR(i32, 0) + t * topK;
    double total = 1e-20;
    for (int k = 0; k < topK; k++) total += score[ids[k] = takeLargest(choice, taken, n)];
    if (!c->a[10]) total = 1;
    for (int k = 0; k < topK; k++) PTR(float, 1)[t * topK + k] = (float)(score[ids[k]] / total * (double)argFloat(c, 11));
  }
}
