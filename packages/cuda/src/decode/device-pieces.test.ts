// How blocks share what there is to merge (kernels/sm90/decode_few/pieces.h), compiled for the host, against what it promises.
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { hostProgram } from '../testing/host-program'

/** Words of the parts of a tile group of 16 query rows, of 32, 64 and 128. */
const PART_WORDS = [1024, 2048, 4096, 8192]
const program = hostProgram('pieces')

interface Piece {
  readonly entry: number
  readonly first: number
  readonly words: number
}

/** The pieces of all blocks, for each case. */
function piecesOf(cases: readonly (readonly number[])[]): Piece[][] {
  const found = cases.map((): Piece[] => [])
  for (const line of program!(cases.map((words) => words.join(' ')))) {
    const [number, entry, first, words] = line.split(' ').map(Number) as [number, number, number, number]
    found[number]!.push({ entry, first, words })
  }
  return found
}

/** Every word of every one of the entries once, by pieces that a block of 128 threads can take. */
function check(partWords: number, pieces: readonly Piece[], entries: readonly number[]): void {
  const taken = new Map(entries.map((entry) => [entry, 0]))
  const places = new Set<string>()
  for (const { entry, first, words } of pieces) {
    if (entry < 0) continue
    expect(Number.isInteger(Math.log2(words)) && words >= 8 && first % words === 0).toBe(true)
    places.add(`${entry} ${first}`)
    taken.set(entry, taken.get(entry)! + words)
  }
  expect(places.size).toBe(pieces.filter(({ entry }) => entry >= 0).length)
  expect([...taken.keys()]).toEqual([...entries])
  expect([...taken.values()].every((words) => words === partWords)).toBe(true)
}

describe.skipIf(!program)(
  program ? 'the pieces that blocks merge' : 'the pieces that blocks merge: needs Linux and a C++ compiler',
  () => {
    test('cover what is active, with as many blocks as there are', () => {
      const words = fc.array(fc.integer({ min: 0, max: 2 ** 32 - 1 }), { minLength: 4, maxLength: 4 })
      const active = fc.oneof(
        words,
        fc.uniqueArray(fc.nat(127), { maxLength: 9 }).map((bits) => {
          const mask = [0, 0, 0, 0]
          for (const bit of bits) mask[bit >> 5] = mask[bit >> 5]! + 2 ** (bit & 31)
          return mask
        }),
      )
      const blocks = fc.integer({ min: 128, max: 400 })
      const part = fc.constantFrom(...PART_WORDS)
      fc.assert(
        fc.property(fc.array(fc.tuple(part, blocks, active), { minLength: 20, maxLength: 20 }), (cases) => {
          const found = piecesOf(cases.map(([words, n, masks]) => [words, n, ...masks]))
          for (const [i, [partWords, n, masks]] of cases.entries()) {
            const entries = Array.from({ length: 128 }, (_, bit) => bit).filter(
              (bit) => (masks[bit >> 5]! >>> (bit & 31)) & 1,
            )
            check(partWords, found[i]!, entries)
            const most = Math.min(Math.floor(n / Math.max(entries.length, 1)), 128)
            const pieces = entries.length > 0 ? partWords / found[i]![0]!.words : most
            expect(pieces > most / 2 && pieces <= most).toBe(true)
          }
        }),
        { numRuns: 20 },
      )
    })

    test('cover every entry where all have as many', () => {
      const cases = [1, 2, 4, 8, 16, 32, 64, 128].flatMap((pieces) =>
        [1, 3, 132].flatMap((entries) => PART_WORDS.map((words) => [words, entries, pieces])),
      )
      for (const [i, found] of piecesOf(cases).entries())
        check(
          cases[i]![0]!,
          found,
          Array.from({ length: cases[i]![1]! }, (_, entry) => entry),
        )
    })
  },
)
