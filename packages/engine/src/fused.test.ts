// What the engine puts together for a backend without the operations in one, held to the contract's cases of those operations.
import { ReferenceBackend } from '@flashmla/cpu'
import type { LinearProduct, Norm, PagedCache, Rotation, Tensor, Weight } from '@flashmla/spec'
import { contractCases } from '@flashmla/testing'
import { expect, it } from 'vitest'
import * as fused from './fused'

type F32 = Tensor<'f32'>
type I32 = Tensor<'i32'>

/** The reference backend with the operations in one, each by the others. */
class Composed extends ReferenceBackend {
  readonly #plain = new ReferenceBackend()
  readonly #used = new Set<string>()

  get used(): readonly string[] {
    return [...this.#used].sort()
  }

  addLinear(x: F32, y: F32, weight: Weight): void {
    this.#used.add('addLinear')
    fused.addLinear(this.#plain, x, y, weight, this.tensor('f32', x.shape))
  }

  linears(x: F32, products: readonly LinearProduct[]): void {
    this.#used.add('linears')
    fused.linears(
      this.#plain,
      x,
      products.map((product) => ({ ...product, other: this.tensor('f32', product.out.shape) })),
    )
  }

  absorbQueries(out: F32, q: F32, uk: Weight, rotation: Rotation): void {
    this.#used.add('absorbQueries')
    const [h, rank, nope] = uk.shape as [number, number, number]
    const n = rotation.positions.shape[0]!
    const work = { qNope: this.tensor('f32', [n, h, nope]), qLatent: this.tensor('f32', [n, h, rank]) }
    // The engine's form may turn the queries in place.
    const queries = this.tensor('f32', q.shape)
    this.copyColumns(queries, 0, q, 0, q.shape.at(-1)!)
    fused.absorbQueries(this.#plain, out, queries, uk, rotation, work)
  }

  appendLatents(cache: PagedCache, latent: F32, norm: Norm, rotation: Rotation, slots: I32): void {
    this.#used.add('appendLatents')
    const work = this.tensor('f32', [slots.shape[0]!, cache.format.kvLoraRank])
    fused.appendLatents(this.#plain, cache, latent, norm, rotation, slots, work)
  }
}

const backend = new Composed()
const cases = contractCases(() => backend).filter(({ name }) => name.startsWith('fused: '))

it.each(cases.map((each) => [each.name, each] as const))('%s', (_, each) => each.run())

it('every one of them was put together', () => {
  expect(backend.used).toEqual(['absorbQueries', 'addLinear', 'appendLatents', 'linears'])
})
