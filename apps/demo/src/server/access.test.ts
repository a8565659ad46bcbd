import { describe, expect, it } from 'vitest'
import { Access } from './access'

describe('Access', () => {
  const access = new Access(['first', 'second'], 2)

  it('knows a key by its whole text, and hands out neither the key nor its hash as an id', () => {
    const { id, salt } = access.tenant('Bearer first')
    expect(access.tenant('bearer first')).toEqual({ id, salt })
    expect(access.tenant('Bearer second').salt).not.toBe(salt)
    expect(id).toHaveLength(8)
    expect(id + salt).not.toContain('first')
  })

  it.each([undefined, '', 'first', 'Bearer', 'Bearer ', 'Bearer firs', 'Bearer first ', 'Basic first'])(
    'refuses %j',
    (header) => {
      expect(() => access.tenant(header)).toThrow(expect.objectContaining({ status: 401 }))
    },
  )

  it('lets everyone in where there are no keys', () => {
    expect(new Access([], 1).tenant(undefined)).toEqual({ id: 'anyone', salt: '' })
  })

  it('counts what a key runs, each end once', () => {
    const [first, second] = ['first', 'second'].map((key) => access.tenant(`Bearer ${key}`))
    const leave = access.enter(first!)
    access.enter(first!)
    expect(() => access.enter(first!)).toThrow(
      expect.objectContaining({ status: 429, details: expect.objectContaining({ retryAfter: 1 }) }),
    )
    access.enter(second!)()
    leave()
    leave()
    expect(access.running).toBe(1)
    access.enter(first!)
    expect(() => access.enter(first!)).toThrow('its limit')
  })
})
