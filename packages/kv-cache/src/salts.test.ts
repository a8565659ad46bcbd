import { describe, expect, it } from 'vitest'
import { Salts } from './salts'

describe('salts', () => {
  it('have numbers that fit a block column, and that no other in use has', () => {
    const salts = new Salts()
    const kept = salts.acquire('kept')
    salts.restore({ next: 2 ** 31 - 1, used: [] })
    const last = salts.acquire('last')
    const next = salts.acquire('next')
    expect(last).toBe(2 ** 31 - 1)
    expect(next).toBeLessThan(last)
    expect(next).not.toBe(kept)
    expect(salts.text(next)).toBe('next')
  })
})
