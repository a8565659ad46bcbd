import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { UnsupportedError } from '@flashmla/spec'

const ELF = Buffer.of(0x7f, 0x45, 0x4c, 0x46)
const ELF_HEADER_BYTES = 64

/**
 * Reads a module's compiled code, and sees to it that the driver gets all of it as it was built: a copy that was cut short, or a
 * pointer file of a version control system, would fail there with a status that says little.
 * @throws UnsupportedError naming the file and what is wrong with it
 */
export function readImage(directory: string, name: string, symbols: readonly string[], sha256: string): Uint8Array {
  const path = join(directory, name)
  let bytes: Buffer
  try {
    bytes = readFileSync(path)
  } catch (error) {
    throw unusable(path, (error as Error).message)
  }
  const text = name.endsWith('.ptx')
  const fault = text ? faultOfPtx(bytes) : faultOfCubin(bytes)
  if (fault) throw unusable(path, fault)
  const missing = symbols.find((symbol) => !bytes.includes(text ? `.entry ${symbol}(` : `\0${symbol}\0`))
  if (missing) throw unusable(path, `the manifest's kernel ${missing} is not in it`)
  if (createHash('sha256').update(bytes).digest('hex') !== sha256)
    throw unusable(path, 'its bytes are not those that were built')
  return bytes
}

// A cubin is a 64-bit ELF file. Its header says where the tables of sections and segments lie: nvcc writes them last.
function faultOfCubin(bytes: Buffer): string | undefined {
  if (bytes.length < ELF_HEADER_BYTES || !bytes.subarray(0, 4).equals(ELF)) {
    return `its ${bytes.length} bytes are no compiled kernels`
  }
  const tableEnd = (at: number, each: number, count: number) =>
    Number(bytes.readBigUInt64LE(at)) + bytes.readUInt16LE(each) * bytes.readUInt16LE(count)
  const needed = Math.max(tableEnd(32, 54, 56), tableEnd(40, 58, 60))
  return bytes.length < needed ? `it ends after ${bytes.length} of ${needed} bytes` : undefined
}

function faultOfPtx(bytes: Buffer): string | undefined {
  if (!/^\.version \d/m.test(bytes.toString('latin1', 0, 4096))) return `its ${bytes.length} bytes are no PTX`
  const end = bytes.toString('latin1', Math.max(bytes.length - 64, 0)).trimEnd()
  return end.endsWith('}') ? undefined : `it ends after ${bytes.length} bytes, within a kernel`
}

function unusable(path: string, fault: string): UnsupportedError {
  return new UnsupportedError(
    `The compiled kernels of ${path} can't be used: ${fault}.`,
    'Install @flashmla/cuda whole; when bundling, keep it external so that its cubin folder stays beside it.',
  )
}
