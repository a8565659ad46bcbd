// Device code that uses little of a GPU, compiled for the host: kernels/test.
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll } from 'vitest'

const sources = fileURLToPath(new URL('../../../../kernels/test', import.meta.url))

/** What the program of kernels/test prints for these lines; undefined where there is no compiler for it. Gone after the file's tests. */
export function hostProgram(name: string): ((lines: readonly string[]) => string[]) | undefined {
  if (process.platform !== 'linux') return undefined
  const folder = mkdtempSync(join(tmpdir(), `flashmla-${name}-`))
  afterAll(() => rmSync(folder, { recursive: true }))
  const program = join(folder, name)
  try {
    const options = ['-std=c++17', '-O1', '-I', sources, '-o', program, join(sources, `${name}.cpp`)]
    execFileSync('c++', options, { stdio: 'ignore' })
  } catch {
    return undefined
  }
  return (lines) => {
    const options = { input: lines.join('\n'), encoding: 'utf8', maxBuffer: 2 ** 30 } as const
    return execFileSync(program, options).trimEnd().split('\n')
  }
}
