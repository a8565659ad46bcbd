import type { WeightSource } from '@flashmla/spec'
import type { Case } from '../case'
import { assertClose, ContractError } from '../compare'
import { sourceOf } from '../workspace'

/** 1, −2, 0.5, 0, 3, −0.25 in each dtype's bits: exact in all of them. */
const values = [1, -2, 0.5, 0, 3, -0.25]
const words = {
  bf16: [0x3f80, 0xc000, 0x3f00, 0, 0x4040, 0xbe80],
  f16: [0x3c00, 0xc000, 0x3800, 0, 0x4200, 0xb400],
}

function halfSource(dtype: 'bf16' | 'f16'): WeightSource {
  return {
    name: dtype,
    dtype,
    shape: [2, 3],
    async read(target) {
      words[dtype].forEach((word, i) => {
        target[2 * i] = word
        target[2 * i + 1] = word >>> 8
      })
    },
  }
}

/** Matrices taken in from each dtype. */
export const weightCases: readonly Case[] = [
  ...(['f32', 'bf16', 'f16'] as const).map(
    (dtype) =>
      ({
        name: `weights: ${dtype} is read as it stands`,
        async run(w): Promise<void> {
          const source = dtype === 'f32' ? sourceOf([2, 3], Float32Array.from(values)) : halfSource(dtype)
          const weight = w.keep(await w.backend.weight(source))
          const [rows, identity] = [w.poisoned(2, 3), w.f32([3, 3], [1, 0, 0, 0, 1, 0, 0, 0, 1])]
          const transposed = w.poisoned(3, 2)
          w.backend.embed(rows, weight, w.i32([2], [0, 1]))
          w.backend.linear(transposed, identity, weight)
          assertClose('rows', await w.backend.read(rows), values, [2, 3], w.tolerance)
          assertClose('columns', await w.backend.read(transposed), [1, 0, -2, 3, 0.5, -0.25], [3, 2], w.tolerance)
        },
      }) satisfies Case,
  ),
  {
    name: 'weights: a source that fails rejects with its own error',
    async run(w) {
      const broken = new ContractError('The disk is gone.')
      const source: WeightSource = { ...halfSource('bf16'), read: () => Promise.reject(broken) }
      const caught = await w.backend.weight(source).catch((error: unknown) => error)
      if (caught !== broken)
        throw new ContractError(`weight() ended in ${String(caught)}, not in the error of its source.`)
    },
  },
]
