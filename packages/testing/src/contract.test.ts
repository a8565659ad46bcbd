import { InvalidArgumentError, UnsupportedError } from '@flashmla/spec'
import { describe, expect, it } from 'vitest'
import { contractCases, runBackendContract } from './contract'

const none = () => {
  throw new UnsupportedError('There is no backend here.', 'Give one.')
}

describe('contractCases', () => {
  it('names every case once', () => {
    const names = contractCases(none).map(({ name }) => name)
    expect(new Set(names).size).toBe(names.length)
    expect(names.length).toBeGreaterThan(100)
  })

  it('marks gaps with their reason, by beginning and by pattern', () => {
    const gaps = [{ reason: 'no fp8 kernel', tests: ['attention: fp8-584', /^cache: fp8/] }]
    const declared = contractCases(none, { gaps }).filter((test) => test.gap !== undefined)
    expect(declared.every(({ name, gap }) => name.includes('fp8') && gap === 'no fp8 kernel')).toBe(true)
    expect(declared.some(({ name }) => name.startsWith('cache: fp8-656'))).toBe(true)
  })

  it('takes a pattern for every case that it matches, whatever its flags', () => {
    const count = (test: RegExp) =>
      contractCases(none, { gaps: [{ reason: 'why', tests: [test] }] }).filter(({ gap }) => gap).length
    expect(count(/^attention/g)).toBe(count(/^attention/))
  })

  it('refuses a gap that has outlived its case', () => {
    const gaps = [{ reason: 'old', tests: ['attention: fp4'] }]
    expect(() => contractCases(none, { gaps })).toThrow(InvalidArgumentError)
  })

  it('takes a backend that is not there for no gap of it', async () => {
    const [test] = contractCases(none, { gaps: [{ reason: 'why', tests: [/./] }] })
    await expect(test!.run()).rejects.toThrow(UnsupportedError)
  })

  it('passes on what a backend throws', async () => {
    for (const test of contractCases(none).slice(0, 3)) await expect(test.run()).rejects.toThrow(UnsupportedError)
  })
})

it('runBackendContract registers each case as a test, gaps with their reason', () => {
  const seen: string[] = []
  runBackendContract('mine', none, {
    describe: (name, body) => {
      seen.push(name)
      body()
    },
    it: (name) => seen.push(name),
    gaps: [{ reason: 'why', tests: ['batch: a captured'] }],
  })
  expect(seen[0]).toBe('mine keeps the backend contract')
  expect(seen.filter((line) => line.includes('(gap: '))).toEqual([
    'batch: a captured step replays over changed tensors and steps (gap: why)',
  ])
  expect(seen.length).toBe(contractCases(none).length + 1)
})
