// In which order a worker takes KV blocks (kernels/common/order.h), compiled for the host, against what it promises.
import { describe, expect, test } from 'vitest'
import { hostProgram } from '../testing/host-program'

const program = hostProgram('order')

interface Order {
  readonly mixed: number
  readonly blocks: readonly number[]
}

/** The orders of segments of so many blocks, of which so many may have been fetched ahead. */
function ordersOf(cases: readonly (readonly [blocks: number, fetched: number])[], alternates = true): Order[] {
  return program!(cases.map(([blocks, fetched]) => `${blocks} ${fetched} ${alternates ? 1 : 0}`)).map((line) => {
    const [mixed, ...places] = line.split(' ').map(Number) as [number, ...number[]]
    // What is left out of the order, since it is masked, stays where it is.
    const n = places.length - 2
    expect(places.slice(n)).toEqual([n, n + 1])
    return { mixed, blocks: places.slice(0, n) }
  })
}

const upTo = (n: number) => Array.from({ length: n }, (_, i) => i)

describe.skipIf(!program)(
  program ? 'the order of KV blocks' : 'the order of KV blocks: needs Linux and a C++ compiler',
  () => {
    test('takes every block once, and from a place on as they stand', () => {
      const cases = upTo(40).flatMap((n) => upTo(9).map((fetched) => [n + 1, fetched] as const))
      for (const [i, { mixed, blocks }] of ordersOf(cases).entries()) {
        const [n, fetched] = cases[i]!
        expect([...blocks].sort((a, b) => a - b)).toEqual(upTo(n))
        // What comes after is neither fetched nor out of order, so that it can keep to a pace.
        expect(mixed).toBeLessThanOrEqual(n)
        expect(mixed).toBeGreaterThanOrEqual(Math.min(fetched, n))
        expect(blocks.slice(mixed)).toEqual(upTo(n).slice(mixed))
      }
    })

    test('starts with a fetched block, and lets two from memory follow each while there are any', () => {
      for (const { blocks } of ordersOf([
        [12, 4],
        [40, 4],
      ])) {
        expect(blocks.slice(0, 12)).toEqual([0, 4, 5, 1, 6, 7, 2, 8, 9, 3, 10, 11])
      }
      const [short, shorter, odd] = ordersOf([
        [8, 4],
        [5, 4],
        [7, 4],
      ])
      expect(short!.blocks).toEqual([0, 4, 5, 1, 6, 7, 2, 3])
      expect(shorter!.blocks).toEqual([0, 1, 2, 3, 4])
      expect(odd!.blocks).toEqual([0, 4, 5, 1, 2, 3, 6])
    })

    test('is that of the sequence where nothing has been fetched, or pages are smaller than a block', () => {
      expect(ordersOf([[20, 0]])[0]).toEqual({ mixed: 0, blocks: upTo(20) })
      expect(ordersOf([[20, 4]], false)[0]).toEqual({ mixed: 4, blocks: upTo(20) })
    })
  },
)
