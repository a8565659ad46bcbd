import { type FileHandle, mkdtemp, open, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, it } from 'vitest'
import { readRange } from './read-range'

const SIZE = 23_000_017
let folder: string
let handle: FileHandle
const byteAt = (at: number) => (at * 2654435761) >>> 24

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'range-'))
  const bytes = new Uint8Array(SIZE)
  for (let at = 0; at < SIZE; at++) bytes[at] = byteAt(at)
  await writeFile(join(folder, 'file'), bytes)
  handle = await open(join(folder, 'file'))
})
afterEach(async () => {
  await handle.close()
  await rm(folder, { recursive: true })
})

it('reads ranges whole, in one piece or several', async () => {
  for (const [position, length] of [
    [0, 0],
    [5, 1],
    [3, 4_194_305],
    [0, SIZE],
    [1_000_001, 20_000_003],
  ] as const) {
    const target = new Uint8Array(length)
    await readRange({ file: 'file' }, handle, target, position)
    const wrong = target.findIndex((byte, i) => byte !== byteAt(position + i))
    expect([position, length, wrong]).toEqual([position, length, -1])
  }
})

it('waits for all pieces before it fails, and names the place', async () => {
  let under = 0
  const slow = {
    read: async (...args: Parameters<FileHandle['read']>) => {
      under++
      try {
        return await handle.read(...args)
      } finally {
        under--
      }
    },
  } as unknown as FileHandle
  const target = new Uint8Array(20_000_000)
  const place = { file: 'file', tensor: 'a.weight' }
  await expect(readRange(place, slow, target, SIZE - 6_000_000)).rejects.toMatchObject({
    code: 'checkpoint',
    message: expect.stringContaining('the file ends inside the tensor'),
  })
  expect(under).toBe(0)
  await handle.close()
  await expect(readRange(place, handle, target, 0)).rejects.toThrow(/a\.weight.*reading failed/s)
  handle = await open(join(folder, 'file'))
})
