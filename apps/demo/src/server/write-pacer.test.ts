import type { StepReport } from '@flashmla/engine'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { WritePacer } from './write-pacer'

/** An engine of which only its steps' times and queue are seen. */
function fakeEngine() {
  let hear: (report: StepReport) => void = () => {}
  return {
    queued: 0,
    onStep(listener: (report: StepReport) => void) {
      hear = listener
      return () => {}
    },
    /** A step of so many milliseconds gives each stream a piece; the turn after it ends. */
    async step(milliseconds: number, pacer: WritePacer, streams: readonly FakeStream[], prefill = 0) {
      vi.advanceTimersByTime(milliseconds)
      for (const stream of streams) stream.send(pacer)
      hear({ sequences: streams.length, prefill, generated: streams.length, milliseconds })
      await Promise.resolve()
    },
  }
}

class FakeStream {
  fresh = true
  pending = 0
  readonly writes: number[] = []
  send(pacer: WritePacer) {
    if (this.pending++ === 0) pacer.add(this)
  }
  flush() {
    this.fresh = false
    this.writes.push(this.pending)
    this.pending = 0
  }
}

beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] }))
afterEach(() => void vi.useRealTimers())

describe('WritePacer', () => {
  it('writes a first piece at once and then those of several short steps together', async () => {
    const engine = fakeEngine()
    const pacer = new WritePacer(engine, 16)
    const [a, b] = [new FakeStream(), new FakeStream()]
    for (let i = 0; i < 9; i++) await engine.step(5, pacer, [a, b])
    expect(a.writes).toEqual([1, 4, 4])
    expect(b.writes).toEqual([1, 4, 4])
    // A stream that begins while others are held is not.
    const late = new FakeStream()
    await engine.step(5, pacer, [a, b, late])
    expect([a.writes.length, late.writes]).toEqual([3, [1]])
  })

  it('holds nothing where steps are long, where a prompt is computed or waits, or with 0', async () => {
    const engine = fakeEngine()
    const each = async (pacer: WritePacer, ms: number, prefill = 0) => {
      const stream = new FakeStream()
      for (let i = 0; i < 4; i++) await engine.step(ms, pacer, [stream], prefill)
      return stream.writes
    }
    expect(await each(new WritePacer(engine, 16), 17)).toEqual([1, 1, 1, 1])
    expect(await each(new WritePacer(engine, 16), 5, 20)).toEqual([1, 1, 1, 1])
    expect(await each(new WritePacer(engine, 0), 5)).toEqual([1, 1, 1, 1])
    engine.queued = 1
    expect(await each(new WritePacer(engine, 16), 5)).toEqual([1, 1, 1, 1])
  })

  it('writes when a step takes longer than expected, when told to, and not for a stream that has ended', async () => {
    const engine = fakeEngine()
    const pacer = new WritePacer(engine, 16)
    const [a, ended] = [new FakeStream(), new FakeStream()]
    await engine.step(5, pacer, [a, ended])
    await engine.step(5, pacer, [a, ended])
    pacer.delete(ended)
    vi.advanceTimersByTime(15)
    expect(a.writes).toEqual([1])
    vi.advanceTimersByTime(1)
    expect(a.writes).toEqual([1, 1])
    expect(ended.writes).toEqual([1])
    await engine.step(5, pacer, [a])
    pacer.flush()
    expect(a.writes).toEqual([1, 1, 1])
    vi.advanceTimersByTime(100)
    expect(a.writes).toEqual([1, 1, 1])
  })
})
