// The command list: what JavaScript records in shared memory and every thread runs. Mirrored by src/fast/commands.ts.
#pragma once
#include "simd.h"

enum { PARALLEL = 1, BARRIER = 2 };

enum Op {
  OP_COPY, OP_EMBED, OP_GATHER, OP_RMSNORM, OP_GEMM, OP_COPYCOLUMNS, OP_ROTARY, OP_ADD, OP_ARGMAX, OP_SILU,
  OP_ROUTE, OP_EXPERT_SORT, OP_EXPERT_UP, OP_EXPERT_DOWN, OP_EXPERT_SUM, OP_APPEND, OP_COPYBLOCK, OP_ATTEND,
  OP_COMBINE, OP_NAIVE_ROWS, OP_NAIVE_ATTEND, OP_NAIVE_FINISH, OP_QUANTIZE,
};

typedef struct {
  i32 op;
  u32 flags;
  i32 counter;   // tasks claimed so far, by any thread
  i32 tasks;
  i32 finished;  // tasks done
  i32 sleepers;  // threads asleep until all are
  i32 owner;     // of the commands that are not PARALLEL, the first since a barrier decides which thread runs them
  i32 pad;
  u32 a[24];
} Command;

// Where threads meet. One cache line for each word that is waited on.
typedef struct {
  i32 epoch, epochSleepers, pad0[14];  // odd while a list is open
  i32 count, countSleepers, pad1[14];  // commands published so far; CLOSED once no more will come
  i32 inside, insideSleepers, pad2[14];  // workers that may still read the list
  i32 threads, quit, status, statusValue, statusLimit, spin, ready;
  u32 commands, scratch, scratchStride, pad3[6];
} Sync;

#define CLOSED ((i32)0x80000000)

enum { STATUS_ROW = 1, STATUS_SLOT = 2 };

INLINE i32 claim(Command* c) { return __atomic_fetch_add(&c->counter, 1, __ATOMIC_RELAXED); }
// Counts n more tasks as done, and wakes those who sleep until the last one. Gives 0.
i32 finish(Command* c, i32 n);
INLINE float argFloat(const Command* c, int i) { return asFloat(c->a[i]); }
#define PTR(T, i) ((T*)c->a[i])

// The tasks of a command, each done by one thread: whichever it is, the sums in it run in the same order.
#define FOR_TASKS(t) for (i32 t, n##t = 0; (t = claim(c)) < c->tasks || finish(c, n##t); n##t++)

void fail(Sync* sync, int status, int value, int limit);

void runRows(Sync* sync, Command* c);
void runGemm(Command* c, u8* scratch);
void runQuantize(Command* c);
void runRoute(Command* c);
void runExpertSort(Sync* sync, Command* c);
void runExpertUp(Command* c, u8* scratch);
void runExpertDown(Command* c, u8* scratch);
void runExpertSum(Command* c);
void runCache(Sync* sync, Command* c);
void runAttend(Command* c, u8* scratch);
void runCombine(Command* c);
void runNaive(Command* c);
