import { describe, expect, it } from 'vitest'
import type { CacheEvent } from './events'
import { PagedKvCache } from './paged-kv-cache'

const made = () => new PagedKvCache({ numBlocks: 2, pageSize: 2 })

function storeOne(cache: PagedKvCache, tokens: number[]): void {
  const sequence = cache.allocate({ tokens })
  sequence.commit()
  sequence.free()
}

describe('events', () => {
  it('tell of content stored, removed and cleared, in order and after the call', async () => {
    const cache = made()
    const seen: CacheEvent[] = []
    cache.listen((event) => seen.push(event))
    storeOne(cache, [1, 2, 3, 4])
    expect(seen).toEqual([])
    cache.pool.release(cache.pool.allocate())
    cache.clear()
    await Promise.resolve()
    expect(seen.map(({ type }) => type)).toEqual(['stored', 'stored', 'removed', 'cleared'])
    const [first, second, removed] = seen
    expect(first).toMatchObject({ parentHash: undefined, tokens: Int32Array.of(1, 2) })
    expect(second).toMatchObject({ parentHash: (first as { hash: number }).hash, tokens: Int32Array.of(3, 4) })
    expect(removed).toEqual({
      type: 'removed',
      block: (second as { block: number }).block,
      hash: (second as { hash: number }).hash,
    })
  })

  it('let a listener use the cache', async () => {
    const cache = made()
    const found: number[] = []
    cache.listen((event) => {
      if (event.type === 'stored') found.push(cache.match([1, 2, 3]))
    })
    storeOne(cache, [1, 2])
    await Promise.resolve()
    expect(found).toEqual([2])
  })

  it('stop when the listener is taken away', async () => {
    const cache = made()
    let calls = 0
    const stop = cache.listen(() => calls++)
    storeOne(cache, [1, 2])
    await Promise.resolve()
    stop()
    storeOne(cache, [5, 6])
    await Promise.resolve()
    expect(calls).toBe(1)
  })

  it('begin with the first after the listener came', async () => {
    const cache = made()
    const seen: string[] = []
    cache.listen(({ type }) => seen.push(`early ${type}`))
    cache.clear()
    cache.listen(({ type }) => seen.push(`late ${type}`))
    storeOne(cache, [1, 2])
    await Promise.resolve()
    expect(seen).toEqual(['early cleared', 'early stored', 'late stored'])
  })

  it('reach no listener that one before it took away', async () => {
    const cache = made()
    let calls = 0
    cache.listen(() => stop())
    const stop = cache.listen(() => calls++)
    cache.clear()
    await Promise.resolve()
    expect(calls).toBe(0)
  })

  it('come as an async iterable that ends on abort', async () => {
    const cache = made()
    const abort = new AbortController()
    const types: string[] = []
    const events = cache.events({ signal: abort.signal })
    storeOne(cache, [1, 2, 3, 4])
    for await (const event of events) {
      types.push(event.type)
      if (types.length === 2) setImmediate(() => abort.abort())
    }
    expect(types).toEqual(['stored', 'stored'])
  })

  it('say how many an iterator has lost', async () => {
    const cache = made()
    const events = cache.events({ limit: 1 })
    storeOne(cache, [1, 2, 3, 4])
    cache.clear()
    await Promise.resolve()
    expect((await events.next()).value).toMatchObject({ type: 'stored' })
    expect((await events.next()).value).toEqual({ type: 'lost', events: 2 })
    cache.clear()
    expect((await events.next()).value).toEqual({ type: 'cleared' })
    await events.return?.()
    expect(await events.next()).toEqual({ done: true, value: undefined })
  })
})
