/**
 * What the block allocator and the prefix cache cost per operation, from 1 k to 1 M blocks.
 *
 *   pnpm --filter @flashmla/benchmarks exec tsx src/kv-cache.ts
 */
import { BlockPool, PagedKvCache, PagedSequence } from '@flashmla/kv-cache'
import { measure } from './kv-cache-measure'
import { machine, writeResult } from './kv-cache-result'

const sizes = [1_000, 10_000, 100_000, 1_000_000]
const pageSize = 16
const sequences = 256

const range = (length: number) => Array.from({ length }, (_, i) => i)

/** One token appended to each of 256 live sequences in turn; all are freed when the pool is full. */
function append(numBlocks: number): (operations: number) => void {
  const pool = new BlockPool(numBlocks)
  const live = range(sequences).map(() => new PagedSequence(pool, pageSize))
  const room = Math.floor(numBlocks / sequences) * pageSize
  return (operations) => {
    for (let done = 0; done < operations; ) {
      if (live[0]!.length === room) for (const sequence of live) sequence.truncate(0)
      for (const sequence of live) sequence.appendToken(done)
      done += sequences
    }
  }
}

/** The same with token ids kept and full blocks hashed and stored: once the pool is full, each new block evicts one. */
function appendAndCommit(numBlocks: number): (operations: number) => void {
  const cache = new PagedKvCache({ numBlocks, pageSize })
  const live = range(sequences).map(() => cache.createSequence({ tokens: [] }))
  // Sequences of at most 256 tokens, so that at every size most of the pool is idle content of the past.
  const room = Math.min(16, Math.floor(numBlocks / sequences)) * pageSize
  let token = 0
  return (operations) => {
    for (let done = 0; done < operations; ) {
      if (live[0]!.length === room) for (const sequence of live) sequence.truncate(0)
      for (const sequence of live) {
        sequence.appendToken(token)
        sequence.commit()
        token = (token + 1) & 0xffffff
      }
      done += sequences
    }
  }
}

/** A block taken from a pool whose free list is in no order, and given back. */
function allocateAndRelease(numBlocks: number): (operations: number) => void {
  const pool = new BlockPool(numBlocks)
  const taken = range(numBlocks).map(() => pool.allocate())
  let state = 1
  for (let i = taken.length - 1; i > 0; i--) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    const j = state % (i + 1)
    const other = taken[j]!
    taken[j] = taken[i]!
    taken[i] = other
  }
  for (const block of taken) pool.release(block)
  const held = new Int32Array(Math.min(numBlocks, 1024))
  return (operations) => {
    for (let done = 0; done < operations; done += held.length) {
      for (let i = 0; i < held.length; i++) held[i] = pool.allocate()
      for (let i = 0; i < held.length; i++) pool.release(held[i]!)
    }
  }
}

/** A sequence of eight blocks found by content and freed again: per block found. The pool is full of such content. */
function findPrefix(numBlocks: number): (operations: number) => void {
  const cache = new PagedKvCache({ numBlocks, pageSize })
  const blocks = 8
  const prompts = Math.floor(numBlocks / blocks)
  const tokens = new Int32Array(blocks * pageSize + 1)
  const prompt = (i: number) => {
    for (let t = 0; t < tokens.length; t++) tokens[t] = i + t
    return { tokens }
  }
  for (let i = 0; i < prompts; i++) {
    const sequence = cache.createSequence(prompt(i))
    sequence.appendTokens(tokens.subarray(0, blocks * pageSize))
    sequence.commit()
    sequence.free()
  }
  let next = 0
  return (operations) => {
    for (let done = 0; done < operations; done += blocks) {
      // A large odd stride visits the prompts in no order that memory likes.
      next = (next + 7_919) % prompts
      const sequence = cache.createSequence(prompt(next))
      if (sequence.cachedTokens !== blocks * pageSize) throw new Error(`Prompt ${next} was not found.`)
      sequence.free()
    }
  }
}

const cases = [
  { name: 'append', unit: 'token', run: append },
  { name: 'append + commit, evicting', unit: 'token', run: appendAndCommit },
  { name: 'allocate + release', unit: 'block', run: allocateAndRelease },
  { name: 'find a cached prefix', unit: 'block', run: findPrefix },
]

const rows = cases.flatMap(({ name, unit, run }) =>
  sizes.map((numBlocks) => {
    const { nanoseconds, bytes } = measure(run(numBlocks), 2 ** 21)
    const row = { name, unit, numBlocks, nanoseconds, million: 1e3 / nanoseconds, heapBytes: bytes }
    process.stdout.write(
      `${name.padEnd(26)} ${String(numBlocks).padStart(9)} blocks  ${nanoseconds.toFixed(1).padStart(7)} ns/${unit}` +
        `  ${row.million.toFixed(1).padStart(6)} M/s  ${bytes.toFixed(2).padStart(6)} B/${unit}\n`,
    )
    return row
  }),
)
writeResult('kv-cache', { pageSize, sequences, machine: machine(), rows })
