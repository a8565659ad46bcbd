import type { FileHandle } from 'node:fs/promises'
import { CheckpointError } from '@flashmla/spec'

/** A read call takes at most 2 GiB on some systems. */
const MAX_READ = 1 << 30
/** Reads of one range that are under way at once, each of at least so many bytes: Node has four threads for them. */
const PIECES = 4
const LEAST_PIECE = 4 << 20

/** What is read, for the error. */
export interface Place {
  readonly file: string
  readonly tensor?: string
}

/** Fills `target` from byte `position` of the file on. @throws CheckpointError when the file can't be read or ends */
export async function readRange(place: Place, handle: FileHandle, target: Uint8Array, position: number): Promise<void> {
  const each = Math.max(Math.ceil(target.length / PIECES), LEAST_PIECE)
  const pieces: Promise<void>[] = []
  for (let start = 0; start < target.length; start += each)
    pieces.push(readPiece(place, handle, target.subarray(start, start + each), position + start))
  // Nothing may be written to the target any more once this throws.
  for (const piece of await Promise.allSettled(pieces)) if (piece.status === 'rejected') throw piece.reason
}

async function readPiece(place: Place, handle: FileHandle, target: Uint8Array, position: number): Promise<void> {
  let done = 0
  while (done < target.length) {
    const wanted = Math.min(target.length - done, MAX_READ)
    const { bytesRead } = await handle.read(target, done, wanted, position + done).catch((cause) => {
      throw new CheckpointError({ ...place, fact: `reading failed: ${cause.message}.`, cause })
    })
    if (bytesRead === 0)
      throw new CheckpointError({ ...place, fact: `the file ends inside the ${place.tensor ? 'tensor' : 'header'}.` })
    done += bytesRead
  }
}
