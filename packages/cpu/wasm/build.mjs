// Compiles the kernels with clang ≥ 16 and wasm-ld: node wasm/build.mjs. CLANG names another clang.
// Writes kernels.simd.wasm, kernels.relaxed.wasm, manifest.json, and both modules as base64 for the package's bundle.
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const here = fileURLToPath(new URL('.', import.meta.url))
const clang = process.env.CLANG ?? 'clang-19'
const sources = readdirSync(here).filter((name) => /\.[ch]$/.test(name))
const sha256 = (data) => createHash('sha256').update(data).digest('hex')
const variants = { simd: [], relaxed: ['-mrelaxed-simd'] }
const flags = [
  '--target=wasm32',
  '-O3',
  '-std=c17',
  '-ffreestanding',
  '-nostdlib',
  '-Wall',
  '-Werror',
  '-msimd128',
  '-matomics',
  '-mbulk-memory',
  '-fno-math-errno',
  '-ffp-contract=off',
  // Strength reduction would hide from the compiler that addresses differ by constants, which a load takes for nothing.
  '-mllvm',
  '-disable-lsr',
]
const link = [
  '--no-entry',
  '--import-memory',
  '--shared-memory',
  '--max-memory=4294967296',
  '--export=__stack_pointer',
  '--export=__heap_base',
  '--stack-first',
  '-zstack-size=65536',
  '--strip-all',
].map((flag) => (flag.startsWith('-z') ? `-Wl,-z,${flag.slice(2)}` : `-Wl,${flag}`))

const work = mkdtempSync(join(tmpdir(), 'flashmla-wasm-'))
const modules = {}
for (const [name, extra] of Object.entries(variants)) {
  const out = join(work, `${name}.wasm`)
  const units = sources.filter((source) => source.endsWith('.c')).map((source) => join(here, source))
  execFileSync(clang, [...flags, ...extra, ...link, ...units, '-o', out], { stdio: 'inherit' })
  modules[name] = readFileSync(out)
  writeFileSync(join(here, `kernels.${name}.wasm`), modules[name])
}
rmSync(work, { recursive: true })

const manifest = {
  compiler: execFileSync(clang, ['--version']).toString().split('\n')[0],
  flags: [...flags, ...link],
  sources: Object.fromEntries(sources.map((name) => [name, sha256(readFileSync(join(here, name)))])),
  modules: Object.fromEntries(Object.entries(modules).map(([name, data]) => [name, sha256(data)])),
}
writeFileSync(join(here, 'manifest.json'), `${JSON.stringify(manifest, null, 2)}\n`)
const constants = Object.entries(modules).map(
  ([name, data]) => `export const ${name}Module =\n  '${data.toString('base64')}'\n`,
)
writeFileSync(
  join(here, '../src/fast/modules.generated.ts'),
  `// Written by wasm/build.mjs from kernels.*.wasm.\n${constants.join('')}`,
)
for (const [name, data] of Object.entries(modules)) console.log(`${name}: ${data.length} bytes`)
