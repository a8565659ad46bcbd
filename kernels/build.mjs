// Compiles the kernels into packages/cuda/cubin and writes their manifest. `--check` compares manifest and sources, no compiler.
// `--trace FOLDER` compiles the decode kernels with clocks in them (common/trace.h).
// A word compiles only the modules whose source has it (`node kernels/build.mjs model`); the others' entries stay.
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { suspects } from './machine-code.mjs'

const root = dirname(fileURLToPath(import.meta.url))
const output = join(root, '..', 'packages', 'cuda', 'cubin')
const manifestPath = join(output, 'manifest.json')
const SM90 = ['-gencode', 'arch=compute_90a,code=sm_90a', '-cubin']
const PORTABLE = ['-arch=compute_80', '-ptx']

const decode = (symbol) => ({ symbol, threads: 384, sharedBytes: 232448, cluster: 1, tileRows: 64, blockTokens: 64 })
const decodeFew = (symbol) => ({ ...decode(symbol), threads: 320, sharedBytes: 209920, tileRows: 16 })
const decodeFew32 = (symbol) => ({ ...decodeFew(symbol), sharedBytes: 212992, tileRows: 32 })
const plain = (symbol, threads, extra = {}) => ({ symbol, threads, sharedBytes: 0, cluster: 1, ...extra })
const combine = plain('mla_combine', 512)
const append = [plain('mla_append', 128), plain('mla_cast', 256)]
const portable = ['bf16', 'f16'].map((type) =>
  plain(`mla_decode_portable_${type}`, 128, { sharedBytes: 58176, tileRows: 16, blockTokens: 64 }),
)
const model = [
  ['mla_take_rows', 256],
  ['mla_rms_norm', 256],
  ['mla_copy_columns', 256],
  ['mla_rotary', 256],
  ['mla_add', 256],
  ['mla_silu_mul', 256],
  ['mla_convert', 256],
  ['mla_argmax', 256],
  ['mla_sample', 1024],
  ['mla_route', 32],
  ['mla_linear_few_1', 256],
  ['mla_linear_few_4', 256],
  ['mla_linear_few_8', 256],
  ['mla_linear_row', 256],
  ['mla_linear_rows_mma', 256],
  ['mla_linear_mma_16x16', 256],
  ['mla_linear_mma_16x32', 256],
  ['mla_linear_mma_32x32', 256],
  ['mla_linear_many', 128],
  ['mla_linear_half', 256],
  ['mla_expert_up', 256],
  ['mla_expert_down', 256],
  ['mla_expert_sort', 1024],
  ['mla_expert_tiles', 128],
  ['mla_expert_tiles_half', 256],
  ['mla_expert_sum', 256],
  ['mla_append_rows', 128],
  ['mla_append_latents', 128],
  ['mla_attend', 256],
  ['mla_attend_merge', 128],
  ['mla_gather_latents', 256],
  ['mla_attend_naive', 128],
].map(([symbol, threads]) => plain(symbol, threads))

/** Bytes of shared memory as linear/config.h has them. */
const product = (symbol, rows, outputs, stages) =>
  plain(symbol, 384, { sharedBytes: 1024 + stages * (rows * 256 + outputs * 128 + 16) + 8 * rows })
const products = [
  product('mla_linear_64x64', 64, 64, 8),
  product('mla_linear_64x128', 64, 128, 6),
  product('mla_linear_64x256', 64, 256, 4),
  product('mla_linear_128x256', 128, 256, 3),
  product('mla_gated_64x128', 64, 128, 6),
  product('mla_gated_64x256', 64, 256, 4),
  product('mla_gated_128x256', 128, 256, 3),
  product('mla_expert_gated_64x128', 64, 128, 6),
  product('mla_expert_gated_64x256', 64, 256, 4),
  product('mla_expert_tiles_64x128', 64, 128, 6),
  product('mla_expert_tiles_64x256', 64, 256, 4),
]

/** Each module: its file, source, compiler flags, target and kernels. */
const modules = [
  {
    module: 'mla_decode_sm90.cubin',
    source: 'sm90/decode/instantiations.cu',
    target: 'sm_90a',
    flags: SM90,
    kernels: [
      ...['bf16', 'f16'].flatMap((type) =>
        ['', '_gather', '_merge', '_merge_paced', '_share'].map((kind) => decode(`mla_decode_${type}${kind}`)),
      ),
      combine,
      plain('mla_combine_f16', 512),
      plain('mla_combine_rows', 256),
      plain('mla_combine_rows_f16', 256),
    ],
  },
  {
    module: 'mla_decode_few_sm90.cubin',
    source: 'sm90/decode_few/instantiations.cu',
    target: 'sm_90a',
    flags: SM90,
    kernels: [
      ...['bf16', 'f16'].flatMap((type) => ['', '_merge'].map((kind) => decodeFew(`mla_decode_${type}_few${kind}`))),
      ...['bf16', 'f16'].flatMap((type) =>
        ['', '_merge'].map((kind) => decodeFew32(`mla_decode_${type}_few32${kind}`)),
      ),
      ...['few', 'few32', 'few64', 'few128'].flatMap((rows) =>
        ['', '_ragged'].map((kind) => plain(`mla_combine_${rows}${kind}`, 128)),
      ),
    ],
  },
  {
    module: 'mla_linear_sm90.cubin',
    source: 'sm90/linear/instantiations.cu',
    target: 'sm_90a',
    flags: SM90,
    kernels: products,
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
  { module: 'mla_model.cubin', source: 'model/instantiations.cu', target: 'sm_90a', flags: SM90, kernels: model },
  { module: 'mla_model.ptx', source: 'model/instantiations.cu', target: 'compute_80', flags: PORTABLE, kernels: model },
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

function describe(recorded = [], only = '') {
  return modules.flatMap(({ module, source, target, flags, kernels }) => {
    if (!source.includes(only)) return recorded.filter((kernel) => kernel.module === module)
    const sourceSha256 = hash(source, flags)
    const moduleSha256 = createHash('sha256')
      .update(readFileSync(join(output, module)))
      .digest('hex')
    return kernels.map((kernel) => ({
      module,
      moduleSha256,
      target,
      source: `kernels/${source}`,
      sourceSha256,
      ...kernel,
    }))
  })
}

/** Ends the program when a module has, or its PTX turns into, an instruction that ptxas gets wrong. */
function refuseMiscompiled(module, file) {
  const found = suspects(file)
  if (found.length === 0) return
  console.error(
    `${module} has VIMNMX with a predicate, which ptxas 13.0 gets wrong (kernels/machine-code.mjs): ${found}`,
  )
  process.exit(1)
}

/** What a Hopper device's driver makes of PTX. */
function assembled(file) {
  const folder = mkdtempSync(join(tmpdir(), 'flashmla-ptx-'))
  try {
    const cubin = join(folder, 'sm_90.cubin')
    execFileSync('ptxas', ['-arch=sm_90', file, '-o', cubin])
    return readFileSync(cubin)
  } finally {
    rmSync(folder, { recursive: true })
  }
}

if (process.argv.includes('--check')) {
  const recorded = existsSync(manifestPath) ? JSON.parse(readFileSync(manifestPath, 'utf8')) : { kernels: [] }
  const missing = modules.map(({ module }) => module).filter((module) => !existsSync(join(output, module)))
  if (missing.length > 0 || JSON.stringify(recorded.kernels) !== JSON.stringify(describe())) {
    console.error(
      `The compiled kernels don't match their manifest and sources${missing.length ? ` (missing: ${missing.join(', ')})` : ''}.`,
    )
    console.error('Run `node kernels/build.mjs` with nvcc 13.0 and commit packages/cuda/cubin.')
    process.exit(1)
  }
  for (const { module } of modules) {
    if (module.endsWith('.cubin')) refuseMiscompiled(module, readFileSync(join(output, module)))
  }
  console.log(`${recorded.kernels.length} kernels match their sources.`)
} else if (process.argv.includes('--trace')) {
  // The decode kernels with clocks in them, for benchmarks/gpu/trace.py.
  const folder = process.argv.at(-1)
  mkdirSync(folder, { recursive: true })
  for (const { module, source, flags } of modules.filter(({ source }) => source.startsWith('sm90/'))) {
    const options = ['-std=c++17', '-O3', '-DFLASHMLA_TRACE', ...flags]
    execFileSync('nvcc', [...options, join(root, source), '-o', join(folder, module)])
  }
  copyFileSync(manifestPath, join(folder, 'manifest.json'))
} else {
  const only = process.argv[2] ?? ''
  const recorded = existsSync(manifestPath) ? JSON.parse(readFileSync(manifestPath, 'utf8')).kernels : []
  mkdirSync(output, { recursive: true })
  for (const { module, source, flags } of modules.filter(({ source }) => source.includes(only))) {
    const report = execFileSync(
      'nvcc',
      ['-std=c++17', '-O3', '-Xptxas', '-v', ...flags, join(root, source), '-o', join(output, module)],
      { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] },
    )
    process.stdout.write(report)
    const file = join(output, module)
    refuseMiscompiled(module, module.endsWith('.ptx') ? assembled(file) : readFileSync(file))
  }
  writeFileSync(manifestPath, `${JSON.stringify({ version: 1, kernels: describe(recorded, only) }, null, 2)}\n`)
  for (const file of readdirSync(output)) console.log(`${file} ${statSync(join(output, file)).size}`)
}
