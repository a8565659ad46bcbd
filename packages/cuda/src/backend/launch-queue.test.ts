import type { Tensor } from '@flashmla/spec'
import { expect, test } from 'vitest'
import { fakeBackend, field } from '../testing/fake-backend'

async function setUp(graphs = true) {
  const { api, backend, driver, launched } = await fakeBackend({ graphs })
  const tensors = Array.from({ length: 40 }, () => backend.tensor('f32', [1]))
  const out = backend.tensor('f32', [1])
  /** Adds tensors to `out` in an order, then flushes. */
  const step = (order: readonly number[]) => {
    const replayed = api.called('cuGraphLaunch').length
    const before = api.launches.length
    for (const i of order) backend.add(out, tensors[i]! as Tensor<'f32'>)
    backend.write(out, Float32Array.of(0))
    const addresses = api.launches.slice(before).map((launch) => field(launch, 'a') as bigint)
    const known = tensors.map((tensor) => (tensor as unknown as { address: bigint }).address)
    return { launched: addresses.map((a) => known.indexOf(a)), replays: api.called('cuGraphLaunch').length - replayed }
  }
  return { api, backend, driver, launched, step }
}

const upTo = (n: number) => Array.from({ length: n }, (_, i) => i)

test('a step met twice becomes a graph, in chunks; later ones replay it', async () => {
  const { step } = await setUp()
  expect(step(upTo(30))).toEqual({ launched: upTo(30), replays: 0 })
  // Recorded anew, not run: the launches are those of the captures.
  expect(step(upTo(30))).toEqual({ launched: upTo(30), replays: 2 })
  expect(step(upTo(30))).toEqual({ launched: [], replays: 2 })
})

test('what turns out different is launched in its order', async () => {
  const { step } = await setUp()
  step(upTo(10))
  expect(step([0, 1, 2, 9, 8])).toEqual({ launched: [0, 1, 2, 9, 8], replays: 0 })
  expect(step([0, 1, 2])).toEqual({ launched: [0, 1, 2], replays: 0 }) // a beginning only
  expect(step([0, 1, 2, 9, 8, 7])).toEqual({ launched: [0, 1, 2, 9, 8, 7], replays: 0 })
  expect(step([0, 1, 2, 9, 8])).toEqual({ launched: [0, 1, 2, 9, 8], replays: 1 })
  expect(step([0, 1, 2, 9, 8])).toEqual({ launched: [], replays: 1 })
  expect(step(upTo(10)).replays).toBe(1)
})

test('a launch is held back at most until the next copy, read or disposal', async () => {
  const { api, backend, step } = await setUp()
  step(upTo(10))
  const [x, y] = [backend.tensor('f32', [1]), backend.tensor('f32', [1])]
  for (let i = 0; i < 5; i++) backend.add(x, y)
  backend.write(x, Float32Array.of(1))
  for (const end of [() => backend.read(x), () => y.dispose(), () => backend.dispose()]) {
    const before = api.launches.length
    backend.add(x, x)
    backend.add(x, x)
    await end()
    expect(api.launches.length).toBe(before + 2)
  }
})

test('chunks not met for long are dropped with their graphs, and all go with the backend', async () => {
  const { api, backend, driver, step } = await setUp()
  for (let i = 0; i < 200; i++) {
    const order = [i % 40, (i * 7) % 40, Math.floor(i / 40), 3, 4]
    step(order)
    step(order)
  }
  const graphs = [...api.handles.values()].filter((what) => what === 'exec').length
  expect(graphs).toBeGreaterThan(79)
  expect(graphs).toBeLessThan(161)
  backend.dispose()
  expect([driver.live.size, api.handles.size]).toEqual([0, 0])
})

test('where there is no room for a graph the work runs as it came', async () => {
  const { api, step } = await setUp()
  step(upTo(5))
  api.failures.set('cuGraphInstantiateWithFlags', 2)
  const recorded = upTo(5)
  expect(step(upTo(5))).toEqual({ launched: [...recorded, ...upTo(5)], replays: 0 })
  api.failures.clear()
  expect(step(upTo(5))).toEqual({ launched: recorded, replays: 1 })
})

test('without graphs everything is launched as it comes', async () => {
  const { step } = await setUp(false)
  for (let i = 0; i < 3; i++) expect(step(upTo(30))).toEqual({ launched: upTo(30), replays: 0 })
})
