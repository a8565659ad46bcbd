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

  it('marks skips with their reason, by beginning and by pattern', () => {
    const skip = [{ reason: 'no fp8 kernel', tests: ['attention: fp8-584', /^cache: fp8/] }]
    const skipped = contractCases(none, { skip }).filter((test) => test.skipped !== undefined)
    expect(skipped.every(({ name, skipped }) => name.includes('fp8') && skipped === 'no fp8 kernel')).toBe(true)
    expect(skipped.some(({ name }) => name.startsWith('cache: fp8-656'))).toBe(true)
  })

  it('takes a pattern for every case that it matches, whatever its flags', () => {
    const count = (test: RegExp) =>
      contractCases(none, { skip: [{ reason: 'why', tests: [test] }] }).filter(({ skipped }) => skipped).length
    expect(count(/^attention/g)).toBe(count(/^attention/))
  })

  it('refuses a skip that has outlived its case', () => {
    const skip = [{ reason: 'old', tests: ['attention: fp4'] }]
    expect(() => contractCases(none, { skip })).toThrow(InvalidArgumentError)
  })

  it('passes on what a backend throws', async () => {
    for (const test of contractCases(none).slice(0, 3)) await expect(test.run()).rejects.toThrow(UnsupportedError)
  })
})

it('runBackendContract registers each case as a test or a skipped one', () => {
  const seen: string[] = []
  const register = (kind: string) => (name: string) => seen.push(`${kind} ${name}`)
  const it = Object.assign(register('run'), { skip: register('skip') })
  runBackendContract('mine', none, {
    describe: (name, body) => {
      seen.push(name)
      body()
    },
    it,
    skip: [{ reason: 'why', tests: ['batch: a captured'] }],
  })
  expect(seen[0]).toBe('mine keeps the backend contract')
  expect(seen.filter((line) => line.startsWith('skip'))).toEqual([
    'skip batch: a captured step replays over changed tensors and steps (why)',
  ])
  expect(seen.length).toBe(contractCases(none).length + 1)
})
