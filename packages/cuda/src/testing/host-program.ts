// Device code compiled for the host: kernels/test.
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll } from 'vitest'

const sources = fileURLToPath(new URL('../../../../kernels/test', import.meta.url))

/** The file that a source of kernels/test is compiled to; undefined where there is no compiler for it. Gone after the file's tests. */
function compiled(name: string, as = name, options: readonly string[] = []): string | undefined {
  if (process.platform !== 'linux') return undefined
  const folder = mkdtempSync(join(tmpdir(), `flashmla-${name}-`))
  afterAll(() => rmSync(folder, { recursive: true }))
  const file = join(folder, as)
  try {
    const given = ['-std=c++17', '-O2', ...options, '-I', sources, '-o', file, join(sources, `${name}.cpp`)]
    execFileSync('c++', given, { stdio: 'ignore' })
  } catch {
    return undefined
  }
  return file
}

/** What the program of kernels/test prints for these lines; undefined where it can't be compiled. */
export function hostProgram(name: string): ((lines: readonly string[]) => string[]) | undefined {
  const program = compiled(name)
  if (!program) return undefined
  return (lines) => {
    const options = { input: lines.join('\n'), encoding: 'utf8', maxBuffer: 2 ** 30 } as const
    return execFileSync(program, options).trimEnd().split('\n')
  }
}

/** The driver of kernels/test, called as the real one; undefined where it can't be compiled. */
export function hostDriver(): string | undefined {
  return compiled('driver', 'libcuda.so.1', ['-shared', '-fPIC', '-fno-extern-tls-init'])
}
