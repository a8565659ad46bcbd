import type { FastBatch } from './batch'
import type { FastCache } from './cache'
import { Op } from './commands'
import type { ThreadPool } from './pool'
import type { FastTensor } from './tensor'
import type { FastWeight } from './weight'

/** Of wasm/attention.c: a split is a multiple of so many tokens, the least tokens of one, most rows of a work item. */
const SPLIT_STEP = 64
const LEAST_SPLIT = 256
const MAX_GROUP = 64
/** Rows of a work item below which reading the keys costs more than multiplying them. */
const LEAST_GROUP = 4
/** Work items a thread, so that all end at about the same time. */
const ITEMS_PER_THREAD = 4

/** Splits of a sequence's tokens, by its length and query rows alone: wasm/attention.c's `splitsOf`. */
export function splitsOf(length: number, rows: number): number {
  if (length === 0 || rows > 256) return 1
  const size = Math.max(LEAST_SPLIT, Math.ceil(Math.ceil(length / 64) / SPLIT_STEP) * SPLIT_STEP)
  return Math.ceil(length / size)
}

/** Work items of a step: splits times groups of rows. Groups share the keys that they read, and nothing else. */
function itemsOf(batch: FastBatch, h: number, group: number): number {
  let items = 0
  for (let s = 0; s < batch.b; s++) {
    const rows = (batch.queryStart(s + 1) - batch.queryStart(s)) * h
    items += splitsOf(batch.seqLen(s), rows) * Math.ceil(rows / group)
  }
  return items
}

/** Records absorbed attention: a pass over splits, and a pass that combines them where there are any. */
export function recordAttention(
  pool: ThreadPool,
  out: FastTensor<'f32'>,
  lse: FastTensor<'f32'>,
  q: FastTensor<'f32'>,
  cache: FastCache,
  batch: FastBatch,
  scale: number,
): void {
  const [, h, width] = q.shape as [number, number, number]
  const { kvLoraRank: rank } = cache.format
  batch.fit(cache)
  // What may throw comes before memory is taken and anything recorded.
  void [out.address, lse.address, q.address, cache.descriptor]
  let partialRows = 0
  let work = 0
  for (let s = 0; s < batch.b; s++) {
    const rows = (batch.queryStart(s + 1) - batch.queryStart(s)) * h
    const splits = splitsOf(batch.seqLen(s), rows)
    if (splits > 1) partialRows += rows * splits
    work += batch.seqLen(s) * rows * width
  }
  let group = MAX_GROUP
  let items = itemsOf(batch, h, group)
  while (group > LEAST_GROUP && items < pool.threads * ITEMS_PER_THREAD && pool.threads > 1) {
    group /= 2
    items = itemsOf(batch, h, group)
  }
  if (items === 0) return
  const { heap, commands } = pool
  const sums = heap.allocate(partialRows * rank * 4)
  const states = heap.allocate(partialRows * 8)
  const record = (op: number, tasks: number, amount: number) => {
    commands
      .begin(op, tasks, amount)
      .int(0, out.address)
      .int(1, lse.address)
      .int(2, q.address)
      .int(3, cache.descriptor)
      .int(4, batch.starts)
      .int(5, batch.lengths)
      .int(6, batch.table)
      .int(7, batch.stride)
      .int(8, batch.b)
      .int(9, h)
      .float(10, scale)
      .int(11, sums)
      .int(12, states)
      .int(13, group)
      .int(14, pool.threads)
      .writes(out.address, out.bytes)
      .writes(lse.address, lse.bytes)
    if (op === Op.attend) {
      commands.reads(q.address, q.bytes).reads(cache.data, cache.bytes)
      commands.writes(sums, partialRows * rank * 4).writes(states, partialRows * 8)
    } else {
      commands.reads(sums, partialRows * rank * 4).reads(states, partialRows * 8)
    }
    commands.end()
  }
  record(Op.attend, items, work)
  if (partialRows > 0) record(Op.combine, batch.queryStart(batch.b) * h, partialRows * rank)
  heap.release(sums, partialRows * rank * 4)
  heap.release(states, partialRows * 8)
}

/** Tokens whose keys and values naive attention rebuilds at a time. */
const RUN = 256

/** Records naive attention, a run of tokens at a time so that the rebuilt keys and values stay small. */
export function recordNaiveAttention(
  pool: ThreadPool,
  out: FastTensor<'f32'>,
  q: FastTensor<'f32'>,
  kvB: FastWeight,
  cache: FastCache,
  batch: FastBatch,
  scale: number,
  linear: (out: number, x: number, weight: FastWeight, n: number) => void,
): void {
  const [t, h, qk] = q.shape as [number, number, number]
  const v = out.shape.at(-1)!
  const { kvLoraRank: rank, ropeDim } = cache.format
  const nope = qk - ropeDim
  batch.fit(cache)
  void [out.address, q.address, kvB.descriptor, cache.descriptor]
  const { heap, commands } = pool
  const fullBytes = RUN * h * (nope + v) * 4
  const stateBytes = t * h * 8
  const [latent, rope] = [heap.allocate(RUN * rank * 4), heap.allocate(RUN * ropeDim * 4)]
  const [full, state] = [heap.allocate(fullBytes), heap.allocate(stateBytes)]
  for (let s = 0; s < batch.b; s++) {
    const start = batch.queryStart(s)
    const queries = batch.queryStart(s + 1) - start
    const length = batch.seqLen(s)
    if (queries === 0) continue
    const table = batch.table + s * batch.stride * 4
    const [outAt, outBytes] = [out.address + start * h * v * 4, queries * h * v * 4]
    for (let first = 0; first < Math.max(length, 1); first += RUN) {
      const n = Math.min(RUN, length - first)
      if (n > 0) {
        commands
          .begin(Op.naiveRows, n, n * rank)
          .int(0, cache.descriptor)
          .int(1, table)
          .int(2, first)
          .int(3, latent)
          .int(4, rope)
          .reads(cache.data, cache.bytes)
          .writes(latent, n * rank * 4)
          .writes(rope, n * ropeDim * 4)
          .end()
        linear(full, latent, kvB, n)
      }
      commands
        .begin(Op.naiveAttend, queries * h, queries * h * n * (qk + v))
        .int(0, q.address + start * h * qk * 4)
        .int(1, full)
        .int(2, rope)
        .int(3, outAt)
        .int(4, state)
        .int(5, h)
        .int(6, nope)
        .int(7, ropeDim)
        .int(8, v)
        .int(9, first)
        .int(10, n)
        .int(11, length - queries + 1)
        .float(12, scale)
        .reads(q.address, q.bytes)
        .reads(full, fullBytes)
        .reads(rope, RUN * ropeDim * 4)
        .writes(outAt, outBytes)
        .writes(state, stateBytes)
        .end()
    }
    commands
      .begin(Op.naiveFinish, queries * h, queries * h * v)
      .int(0, outAt)
      .int(1, state)
      .int(2, v)
      .reads(state, stateBytes)
      .writes(outAt, outBytes)
      .end()
  }
  heap.release(latent, RUN * rank * 4)
  heap.release(rope, RUN * ropeDim * 4)
  heap.release(full, fullBytes)
  heap.release(state, stateBytes)
}
