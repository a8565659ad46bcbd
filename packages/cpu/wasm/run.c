// Threads: a command list is run by all of them, while it is still being recorded.
// 1. Recording opens the list, which wakes the workers, and publishes each command; the recording thread joins them
//    when it closes the list. A worker that comes late finds less to do, and nobody waits for it.
// 2. Tasks are claimed one at a time. A command that needs the results of earlier ones waits until their tasks are done:
//    for work, not for threads.
// 3. Commands that are not parallel are run by one thread between two barriers, in order: whichever comes first.
#include "command.h"

void fail(Sync* sync, int status, int value, int limit) {
  i32 none = 0;
  if (__atomic_compare_exchange_n(&sync->status, &none, status, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    sync->statusValue = value;
    sync->statusLimit = limit;
  }
}

#define LOAD(word) __atomic_load_n(word, __ATOMIC_SEQ_CST)

// A function of its own, whose arguments are all that is alive: inlined into a loop with more, V8 11's baseline compiler
// passed a wrong address, and the thread slept for ever.
static __attribute__((noinline)) void sleepWhile(i32* word, i32 seen) {
  __builtin_wasm_memory_atomic_wait32(word, seen, -1);
}

// Spins while *word == seen, then sleeps. The sleeper count spares the waker a call where nobody sleeps.
static void waitWhile(i32* word, i32 seen, i32* sleepers, int spin) {
  for (int i = 0; i < spin; i++)
    if (LOAD(word) != seen) return;
  __atomic_fetch_add(sleepers, 1, __ATOMIC_SEQ_CST);
  while (LOAD(word) == seen) sleepWhile(word, seen);
  __atomic_fetch_sub(sleepers, 1, __ATOMIC_SEQ_CST);
}

static i32 change(i32* word, i32 by, i32* sleepers) {
  i32 now = __atomic_fetch_add(word, by, __ATOMIC_SEQ_CST) + by;
  if (LOAD(sleepers) > 0) __builtin_wasm_memory_atomic_notify(word, 0x7fffffff);
  return now;
}

i32 finish(Command* c, i32 n) {
  if (n > 0) change(&c->finished, n, &c->sleepers);
  return 0;
}

// Until the tasks of commands [from, to) are done.
static void barrier(Sync* s, const Command* from, Command* to) {
  for (Command* c = (Command*)from; c < to; c++)
    for (i32 done; (done = LOAD(&c->finished)) < c->tasks;) waitWhile(&c->finished, done, &c->sleepers, s->spin);
}

// Waits for command i. Gives 0 where the list ends before it.
static int published(Sync* s, i32 i) {
  for (;;) {
    i32 count = LOAD(&s->count);
    if ((count & ~CLOSED) > i) return 1;
    if (count & CLOSED) return 0;
    waitWhile(&s->count, count, &s->countSleepers, s->spin);
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
  Command *list = (Command*)s->commands, *open = list, *c = list;
  int owner = -1;
  for (; published(s, c - list); c++) {
    if (c->flags & BARRIER) {
      barrier(s, open, c);
      open = c;
      owner = -1;
    }
    if (!(c->flags & PARALLEL) && owner < 0) owner = __atomic_fetch_add(&c->owner, 1, __ATOMIC_SEQ_CST) == 0;
    if ((c->flags & PARALLEL) || owner) execute(s, c, scratch);
  }
  if (thread == 0) barrier(s, open, c);
}

// The recording thread's part: closes the list, works on it, returns when all of it is done and no worker reads it.
__attribute__((export_name("flush"))) void flush(Sync* s) {
  change(&s->count, CLOSED, &s->countSleepers);
  runList(s, 0);
  if (s->threads == 1) return;
  change(&s->epoch, 1, &s->epochSleepers);
  for (i32 inside; (inside = LOAD(&s->inside)) > 0;) waitWhile(&s->inside, inside, &s->insideSleepers, s->spin);
}

// A worker's life. Returns when the pool quits.
__attribute__((export_name("work"))) void work(Sync* s, int thread) {
  i32 done = 0;
  __atomic_fetch_add(&s->ready, 1, __ATOMIC_SEQ_CST);
  for (;;) {
    i32 epoch = LOAD(&s->epoch);
    if (LOAD(&s->quit)) break;
    if (!(epoch & 1) || epoch == done) {
      waitWhile(&s->epoch, epoch, &s->epochSleepers, s->spin);
      continue;
    }
    // The list may have been closed, and the next one begun, before this thread was counted.
    change(&s->inside, 1, &s->insideSleepers);
    if (LOAD(&s->epoch) == epoch) runList(s, thread);
    change(&s->inside, -1, &s->insideSleepers);
    done = epoch;
  }
  __atomic_fetch_sub(&s->ready, 1, __ATOMIC_SEQ_CST);
}

// Ends the workers, those that wait for more of an open list too.
__attribute__((export_name("quit"))) void quit(Sync* s) {
  __atomic_store_n(&s->quit, 1, __ATOMIC_SEQ_CST);
  __atomic_fetch_or(&s->count, CLOSED, __ATOMIC_SEQ_CST);
  __builtin_wasm_memory_atomic_notify(&s->count, 0x7fffffff);
  change(&s->epoch, 1, &s->epochSleepers);
}
