import { f32Format } from '@flashmla/latent'
import { InvalidArgumentError } from '@flashmla/spec'
import { expect, test } from 'vitest'
import { fakeBackend, field, source } from '../testing/fake-backend'

const [H, RANK, NOPE, ROPE, N] = [3, 32, 16, 8, 5]

test('queries are absorbed by one product over heads with gaps, and the others turned beside it', async () => {
  const { backend, launched } = await fakeBackend()
  const uk = await backend.weight(source([H, RANK, NOPE], 'bf16'))
  const [q, out] = [backend.tensor('f32', [N, H, NOPE + ROPE]), backend.tensor('f32', [N, H, RANK + ROPE])]
  const table = backend.tensor('f32', [7, ROPE / 2, 2])
  const [product, rotary, ...others] = launched(() =>
    backend.absorbQueries(out, q, uk, { table, positions: backend.tensor('i32', [N]), interleaved: true }),
  )
  expect(others).toEqual([])
  const strides = ['x_stride', 'x_head_stride', 'out_stride', 'out_head_stride', 'heads']
  expect(strides.map((name) => field(product!, name))).toEqual([72, 24, 120, 40, 3])
  expect([field(product!, 'n'), field(product!, 'o'), field(product!, 'i')]).toEqual([N, RANK, NOPE])
  const [x, to] = [field(product!, 'x') as bigint, field(product!, 'out') as bigint]
  expect([field(rotary!, 'x'), field(rotary!, 'out')]).toEqual([x + 4n * BigInt(NOPE), to + 4n * BigInt(RANK)])
  const turned = ['rows', 'stride', 'out_stride', 'rows_per_position', 'max_positions', 'pairs', 'interleaved']
  expect(turned.map((name) => field(rotary!, name))).toEqual([15, 24, 40, 3, 7, 4, 1])
})

test('latents are normalized, turned and written by one launch', async () => {
  const { backend, launched } = await fakeBackend()
  const cache = backend.cache(f32Format(RANK, ROPE), 6, 2)
  const latent = backend.tensor('f32', [N, RANK + ROPE])
  const [norm, table] = [backend.tensor('f32', [RANK]), backend.tensor('f32', [7, ROPE / 2, 2])]
  const [positions, slots] = [backend.tensor('i32', [N]), backend.tensor('i32', [N])]
  const append = (eps = 0.5, angles = table) =>
    launched(() => {
      const rotation = { table: angles, positions, interleaved: false }
      backend.appendLatents(cache, latent, { weight: norm, eps }, rotation, slots)
    })
  const [launch, ...others] = append()
  expect(others).toEqual([])
  expect(launch).toMatchObject({ symbol: 'mla_append_latents', grid: [N, 1, 1] })
  const names = ['n', 'num_blocks', 'page_size', 'max_positions', 'kv_lora_rank', 'rope_dim', 'eps', 'interleaved']
  expect(names.map((name) => field(launch!, name))).toEqual([N, 6, 2, 7, RANK, ROPE, 0.5, 0])
  expect(() => append(-1)).toThrow(/eps is -1/)
  expect(() => append(0, backend.tensor('f32', [7, ROPE, 2]))).toThrow(InvalidArgumentError)
})
