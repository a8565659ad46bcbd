import { OutOfPagesError } from '@flashmla/spec'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { BlockPool } from './block-pool'
import { PagedSequence } from './sequence'

describe('PagedSequence', () => {
  it('copies a shared partial block on the first append, and only then', () => {
    const pool = new BlockPool(4)
    const parent = new PagedSequence(pool, 4)
    parent.append(6)
    const child = parent.fork()
    expect(child.append(1)).toEqual({ from: parent.blocks[1], to: child.blocks[1], slots: 2 })
    expect(parent.append(1)).toBeUndefined()
    expect(child.blocks[0]).toBe(parent.blocks[0])
  })

  it('changes nothing when the pool is too small', () => {
    const pool = new BlockPool(2)
    const sequence = new PagedSequence(pool, 4)
    sequence.append(5)
    expect(sequence.canAppend(4)).toBe(false)
    expect(() => sequence.append(4)).toThrow(OutOfPagesError)
    expect([sequence.length, pool.numFree]).toEqual([5, 0])
  })

  it('leaks no block over random programs', () => {
    const step = fc.record({
      op: fc.constantFrom('append', 'fork', 'truncate', 'free'),
      who: fc.nat(7),
      amount: fc.nat(20),
    })
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 9 }),
        fc.array(step, { maxLength: 60, size: 'max' }),
        (pageSize, program) => {
          const pool = new BlockPool(24)
          const live = [new PagedSequence(pool, pageSize)]
          for (const { op, who, amount } of program) {
            const sequence = live[who % live.length]!
            if (op === 'append') {
              if (sequence.canAppend(amount)) sequence.append(amount)
              else expect(() => sequence.append(amount)).toThrow(OutOfPagesError)
            } else if (op === 'fork') live.push(sequence.fork())
            else if (op === 'truncate') sequence.truncate(Math.min(amount, sequence.length))
            else if (live.length > 1) live.splice(who % live.length, 1)[0]!.free()
            const held = new Map<number, number>()
            for (const s of live) for (const block of s.blocks) held.set(block, (held.get(block) ?? 0) + 1)
            for (const [block, times] of held) expect(pool.references(block)).toBe(times)
            expect(pool.numFree).toBe(24 - held.size)
          }
          for (const sequence of live) sequence.free()
          expect(pool.numFree).toBe(24)
        },
      ),
      { numRuns: 1000 },
    )
  })
})
