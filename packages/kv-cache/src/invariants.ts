import type { BlockPool } from './block-pool'
import type { CachedSequence } from './cached-sequence'
import type { PrefixCache } from './prefix-cache'

/**
 * Every way in which pool, prefix cache and sequences contradict each other, at most ten. `exact`: the sequences are all
 * that uses the pool, so that each reference must be one of theirs.
 */
export function findViolations(
  pool: BlockPool,
  prefix: PrefixCache,
  sequences: readonly CachedSequence[],
  exact: boolean,
): string[] {
  const found: string[] = []
  const expect = (holds: boolean, text: () => string) => {
    if (!holds && found.length < 10) found.push(text())
  }
  const { references, free } = pool.state()
  const { stored, parent, children, hash } = prefix.columns
  const n = pool.numBlocks
  const isBlock = (block: number) => Number.isInteger(block) && block >= 0 && block < n

  const held = new Int32Array(n)
  for (const sequence of sequences) {
    const { id, blocks, length, committed } = sequence
    const pages = Math.ceil(length / prefix.pageSize)
    expect(blocks.length === pages, () => `sequence ${id} of ${length} tokens has ${blocks.length} blocks.`)
    expect(committed <= length, () => `sequence ${id} of ${length} tokens has ${committed} committed.`)
    for (const block of blocks) {
      expect(isBlock(block), () => `sequence ${id} holds block ${block} of ${n}.`)
      if (isBlock(block)) held[block]!++
    }
    for (let i = 1; i < blocks.length; i++) {
      const block = blocks[i]!
      if (stored[block] !== 1) continue
      expect(
        parent[block] === blocks[i - 1],
        () => `sequence ${id} holds block ${block} after another than its parent.`,
      )
    }
  }

  const unused = new Uint8Array(n)
  for (const block of free) {
    expect(isBlock(block) && unused[block] === 0, () => `block ${block} is free twice or not in the pool.`)
    if (isBlock(block)) unused[block] = 1
  }

  const kept = new Int32Array(n)
  let numIdle = 0
  let numLeaves = 0
  let numStored = 0
  for (let block = 0; block < n; block++) {
    const count = references[block]!
    expect(
      exact ? count === held[block] : count >= held[block]!,
      () => `block ${block} has ${count} references, ${held[block]} holders.`,
    )
    const idle = count === 0 && stored[block] === 1
    expect(
      (count === 0 && !idle) === (unused[block] === 1),
      () => `block ${block} is neither used, idle nor free, or two of them.`,
    )
    if (stored[block] !== 1) continue
    numStored++
    if (idle) numIdle++
    if (idle && children[block] === 0) numLeaves++
    const before = parent[block]!
    if (before >= 0) {
      expect(
        isBlock(before) && stored[before] === 1,
        () => `stored block ${block} hangs on block ${before}, which is not stored.`,
      )
      if (isBlock(before)) {
        kept[before]!++
        expect(idle || references[before]! > 0, () => `block ${block} is in use and its parent ${before} is idle.`)
      }
    } else
      expect(
        prefix.salts.users(-1 - before) > 0,
        () => `block ${block} hangs on salt ${-1 - before}, which nobody uses.`,
      )
    expect(prefix.indexes(block), () => `stored block ${block} (hash ${hash[block]}) is not in the index once.`)
  }
  for (let block = 0; block < n; block++) {
    if (stored[block] !== 1) continue
    expect(
      children[block] === kept[block],
      () => `block ${block} counts ${children[block]} children and has ${kept[block]}.`,
    )
  }
  expect(numStored === prefix.numStored, () => `${numStored} blocks are stored, ${prefix.numStored} counted.`)
  expect(numIdle === prefix.numIdle, () => `${numIdle} blocks are idle, ${prefix.numIdle} counted.`)
  expect(
    numLeaves === prefix.numEvictable,
    () => `${numLeaves} blocks are idle leaves, the policy holds ${prefix.numEvictable}.`,
  )
  return found
}
