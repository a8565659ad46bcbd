// How rows that are merged are shared out over blocks and warps (kernels/sm90/decode/warp_share.h), compiled for the host, against what it promises.
import { describe, test } from 'vitest'
import { hostProgram } from '../testing/host-program'

const program = hostProgram('warp_share')

describe.skipIf(!program)(
  program ? 'the rows that warps merge' : 'the rows that warps merge: needs Linux and a C++ compiler',
  () => {
    test('every part of every row once, no more of them than a warp has room for', () => {
      // Up to as many parts as a card of 144 multiprocessors makes, the last of which may own no rows.
      const partCounts = [...Array.from({ length: 20 }, (_, i) => i + 2), 31, 32, 33, 34, 63, 64, 65, 66, 132, 144]
      const cases = partCounts.flatMap((parts) =>
        [1, 3, 16, 17, 33, 48, 63, 64].flatMap((rows) => [parts - 1, parts].map((owners) => [parts, owners, rows])),
      )
      const taken = cases.map(([parts, , rows]) => new Uint8Array(parts! * rows!))
      for (const line of program!(cases.map((values) => values.join(' ')))) {
        const [at, , begin, end, sub, step, first, rows, parts, lanes] = line.split(' ').map(Number) as number[]
        const [allParts] = cases[at!]!
        const fits = rows! * lanes! <= 32 && rows! * parts! <= 18 && lanes! >= parts! && (step === 1 || rows! <= 1)
        if (!fits || (rows! > 0 && (first! < begin! || first! + (rows! - 1) * 8 >= end!)))
          throw new Error(`${cases[at!]} has a warp of ${line}`)
        for (let row = 0; row < rows!; row++) {
          const tileRow = first! + row * 8
          for (let part = 0; part < parts!; part++) taken[at!]![tileRow * allParts! + sub! + part * step!]!++
        }
      }
      for (const [i, counts] of taken.entries())
        if (counts.some((count) => count !== 1)) throw new Error(`${cases[i]} is not merged once`)
    })
  },
)
