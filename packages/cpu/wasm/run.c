// Threads: a command list is run by all of them, with a barrier only where one command needs another's result.
#include "command.h"

void fail(Sync* sync, int status, int value, int limit) {
  i32 none = 0;
  if (__atomic_compare_exchange_n(&sync->status, &none, status, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    sync->statusValue = value;
    sync->statusLimit = limit;
  }
}

// Spins while *word == seen, then sleeps. The sleeper count spares the waker a call where nobody sleeps.
static void waitWhile(i32* word, i32 seen, i32* sleepers, int spin) {
  for (int i = 0; i < spin; i++)
    if (__atomic_load_n(word, __ATOMIC_SEQ_CST) != seen) return;
  __atomic_fetch_add(sleepers, 1, __ATOMIC_SEQ_CST);
  while (__atomic_load_n(word, __ATOMIC_SEQ_CST) == seen) __builtin_wasm_memory_atomic_wait32(word, seen, -1);
  __atomic_fetch_sub(sleepers, 1, __ATOMIC_SEQ_CST);
}

static void advance(i32* word, i32* sleepers) {
  __atomic_fetch_add(word, 1, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(sleepers, __ATOMIC_SEQ_CST) > 0) __builtin_wasm_memory_atomic_notify(word, 0x7fffffff);
}

static void barrier(Sync* s) {
  if (s->threads == 1) return;
  i32 phase = __atomic_load_n(&s->phase, __ATOMIC_SEQ_CST);
  if (__atomic_fetch_add(&s->arrived, 1, __ATOMIC_SEQ_CST) == s->threads - 1) {
    __atomic_store_n(&s->arrived, 0, __ATOMIC_SEQ_CST);
    advance(&s->phase, &s->phaseSleepers);
  } else {
    waitWhile(&s->phase, phase, &s->phaseSleepers, s->spin);
  }
}

static void execute(Sync* s, Command* c, u8* scratch) {
  switch (c->op) {
    case OP_GEMM: return runGemm(c, scratch);
    case OP_QUANTIZE: return runQuantize(c);
    case OP_ROUTE: return runRoute(c);
    case OP_EXPERT_SORT: return runExpertSort(s, c);
    case OP_EXPERT_UP: return runExpertUp(c, scratch);
    case OP_EXPERT_DOWN: return runExpertDown(c, scratch);
    case OP_EXPERT_SUM: return runExpertSum(c);
    case OP_APPEND:
    case OP_COPYBLOCK: return runCache(s, c);
    case OP_ATTEND: return runAttend(c, scratch);
    case OP_COMBINE: return runCombine(c);
    case OP_NAIVE_ROWS:
    case OP_NAIVE_ATTEND:
    case OP_NAIVE_FINISH: return runNaive(c);
    default: return runRows(s, c);
  }
}

static void runList(Sync* s, int thread) {
  u8* scratch = (u8*)(s->scratch + thread * s->scratchStride);
  Command* c = (Command*)s->commands;
  for (int i = 0; i < s->count; i++, c++) {
    if (c->flags & BARRIER) barrier(s);
    if (thread == 0 || (c->flags & PARALLEL)) execute(s, c, scratch);
  }
  barrier(s);
}

// The caller's part: publishes the list, works on it, returns when all of it is done.
__attribute__((export_name("flush"))) void flush(Sync* s) {
  if (s->threads > 1) advance(&s->epoch, &s->epochSleepers);
  runList(s, 0);
}

// A worker's life. Returns when the pool quits.
__attribute__((export_name("work"))) void work(Sync* s, int thread) {
  i32 seen = __atomic_load_n(&s->epoch, __ATOMIC_SEQ_CST);
  __atomic_fetch_add(&s->ready, 1, __ATOMIC_SEQ_CST);
  for (;;) {
    waitWhile(&s->epoch, seen, &s->epochSleepers, s->spin);
    seen++;
    if (__atomic_load_n(&s->quit, __ATOMIC_SEQ_CST)) break;
    runList(s, thread);
  }
  __atomic_fetch_sub(&s->ready, 1, __ATOMIC_SEQ_CST);
}

__attribute__((export_name("quit"))) void quit(Sync* s) {
  __atomic_store_n(&s->quit, 1, __ATOMIC_SEQ_CST);
  advance(&s->epoch, &s->epochSleepers);
}
