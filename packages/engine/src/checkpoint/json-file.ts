import { readFile } from 'node:fs/promises'
import { CheckpointError } from '@flashmla/spec'

/** A text file of a checkpoint's folder; undefined where there is none. @throws CheckpointError when it can't be read */
export async function readText(file: string): Promise<string | undefined> {
  return readFile(file, 'utf8').catch((cause) => {
    if (cause.code === 'ENOENT' || cause.code === 'ENOTDIR') return undefined
    throw new CheckpointError({
      file,
      fact: "the file can't be read.",
      hint: 'Check that it is a file, and that this user may read it.',
      cause,
    })
  })
}

/** A file that holds a JSON object; undefined where there is none. @throws CheckpointError for any other content */
export async function readJsonObject(file: string): Promise<Record<string, unknown> | undefined> {
  const text = await readText(file)
  if (text === undefined) return undefined
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch (cause) {
    throw new CheckpointError({ file, fact: 'it is not JSON.', cause })
  }
  if (typeof json !== 'object' || json === null || Array.isArray(json))
    throw new CheckpointError({ file, fact: 'it is not a JSON object.' })
  return json as Record<string, unknown>
}
