// Compiles the kernels into packages/cuda/cubin and writes their manifest. `--check` compares manifest and sources, no compiler.
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(fileURLToPath(import.meta.url))
const output = join(root, '..', 'packages', 'cuda', 'cubin')
const manifestPath = join(output, 'manifest.json')
const SM90 = ['-gencode', 'arch=compute_90a,code=sm_90a', '-cubin']
const PORTABLE = ['-arch=compute_80', '-ptx']

const decode = (symbol, cluster) => ({
  symbol,
  threads: 384,
  sharedBytes: 232448,
  cluster,
  tileRows: 64 * cluster,
  blockTokens: 64,
})
const plain = (symbol, threads, extra = {}) => ({ symbol, threads, sharedBytes: 0, cluster: 1, ...extra })
const combine = plain('mla_combine', 512)
const append = [plain('mla_append', 128), plain('mla_cast', 256)]
const portable = ['bf16', 'f16'].map((type) =>
  plain(`mla_decode_portable_${type}`, 128, { sharedBytes: 58176, tileRows: 16, blockTokens: 64 }),
)

/** Each module: its file, source, compiler flags, target and kernels. */
const modules = [
  {
    module: 'mla_decode_sm90.cubin',
    source: 'sm90/decode/instantiations.cu',
    target: 'sm_90a',
    flags: SM90,
    kernels: [
      ...['bf16', 'f16'].flatMap((type) => [
        decode(`mla_decode_${type}_c1`, 1),
        decode(`mla_decode_${type}_c2`, 2),
        decode(`mla_decode_${type}_gather`, 1),
      ]),
      combine,
    ],
  },
  {
    module: 'mla_decode_portable.ptx',
    source: 'portable/decode.cu',
    target: 'compute_80',
    flags: PORTABLE,
    kernels: [...portable, combine],
  },
  { module: 'mla_append.cubin', source: 'append/append.cu', target: 'sm_90a', flags: SM90, kernels: append },
  { module: 'mla_append.ptx', source: 'append/append.cu', target: 'compute_80', flags: PORTABLE, kernels: append },
].filter(({ source }) => existsSync(join(root, source)))

/** A source and everything it includes by a relative path, sorted. */
function closure(file, seen = new Set()) {
  if (seen.has(file)) return seen
  seen.add(file)
  for (const [, name] of readFileSync(file, 'utf8').matchAll(/^#include "([^"]+)"/gm))
    closure(join(dirname(file), name), seen)
  return seen
}

function hash(source, flags) {
  const sum = createHash('sha256').update(flags.join(' '))
  for (const file of [...closure(join(root, source))].sort())
    sum.update(relative(root, file)).update(readFileSync(file))
  return sum.digest('hex')
}

function describe() {
  return modules.flatMap(({ module, source, target, flags, kernels }) => {
    const sourceSha256 = hash(source, flags)
    return kernels.map((kernel) => ({ module, target, source: `kernels/${source}`, sourceSha256, ...kernel }))
  })
}

if (process.argv.includes('--check')) {
  const recorded = existsSync(manifestPath) ? JSON.parse(readFileSync(manifestPath, 'utf8')) : { kernels: [] }
  const missing = modules.map(({ module }) => module).filter((module) => !existsSync(join(output, module)))
  if (missing.length > 0 || JSON.stringify(recorded.kernels) !== JSON.stringify(describe())) {
    console.error(
      `The compiled kernels don't match their sources${missing.length ? ` (missing: ${missing.join(', ')})` : ''}.`,
    )
    console.error('Run `node kernels/build.mjs` with nvcc 13.0 and commit packages/cuda/cubin.')
    process.exit(1)
  }
  console.log(`${recorded.kernels.length} kernels match their sources.`)
} else {
  mkdirSync(output, { recursive: true })
  for (const { module, source, flags } of modules) {
    const report = execFileSync(
      'nvcc',
      ['-std=c++17', '-O3', '-Xptxas', '-v', ...flags, join(root, source), '-o', join(output, module)],
      { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] },
    )
    process.stdout.write(report)
  }
  writeFileSync(manifestPath, `${JSON.stringify({ version: 1, kernels: describe() }, null, 2)}\n`)
  for (const file of readdirSync(output)) console.log(`${file} ${statSync(join(output, file)).size}`)
}
