import { InvalidArgumentError } from '@flashmla/spec'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { BlockPool } from './block-pool'
import { BlockTable } from './block-table'
import { PagedSequence } from './sequence'

describe('BlockTable', () => {
  it('writes only what changed, in memory that stays', () => {
    const pool = new BlockPool(16)
    const table = new BlockTable({ maxSequences: 2, maxBlocks: 4 })
    const { blocks, lengths } = table
    const sequence = new PagedSequence(pool, 2)
    sequence.append(5)
    expect(table.set(1, sequence)).toBe(3)
    expect(table.set(1, sequence)).toBe(0)
    sequence.append(2)
    expect(table.set(1, sequence)).toBe(1)
    expect([...blocks]).toEqual([-1, -1, -1, -1, ...sequence.blocks])
    expect([...lengths]).toEqual([0, 7])
    table.clear(1)
    expect([...blocks, ...lengths]).toEqual([...Array(8).fill(-1), 0, 0])
    expect(table.blocks).toBe(blocks)
  })

  it('refuses a row or a sequence past its size, and changes nothing', () => {
    const table = new BlockTable({ maxSequences: 1, maxBlocks: 2, padding: 0 })
    const sequence = new PagedSequence(new BlockPool(4), 1)
    sequence.append(3)
    expect(table.canSet(0, sequence)).toBe(false)
    for (const row of [0, 1, -1, 0.5]) expect(() => table.set(row, sequence)).toThrow(InvalidArgumentError)
    expect(() => table.clear(1)).toThrow(InvalidArgumentError)
    expect([...table.blocks]).toEqual([0, 0])
  })

  it('shows what the sequences hold after random programs', () => {
    const step = fc.record({
      op: fc.constantFrom('append', 'truncate', 'fork', 'show', 'show', 'clear'),
      who: fc.nat(3),
      row: fc.nat(2),
      amount: fc.nat(6),
    })
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60, size: 'max' }), (program) => {
        const pool = new BlockPool(64)
        const live = Array.from({ length: 4 }, () => new PagedSequence(pool, 2))
        const table = new BlockTable({ maxSequences: 3, maxBlocks: 16 })
        const rows: number[][] = [[], [], []]
        for (const { op, who, row, amount } of program) {
          const sequence = live[who]!
          if (op === 'append' && sequence.length + amount <= 32 && sequence.canAppend(amount)) sequence.append(amount)
          else if (op === 'truncate') sequence.truncate(Math.min(amount, sequence.length))
          else if (op === 'fork') {
            live[row]!.free()
            live[row] = row === who ? new PagedSequence(pool, 2) : sequence.fork()
          } else if (op === 'show') {
            table.set(row, sequence)
            rows[row] = [...sequence.blocks]
          } else if (op === 'clear') {
            table.clear(row)
            rows[row] = []
          }
          const padded = rows.map((blocks) => [...blocks, ...Array(16 - blocks.length).fill(-1)])
          expect([...table.blocks]).toEqual(padded.flat())
        }
      }),
      { numRuns: 500 },
    )
  })
})
