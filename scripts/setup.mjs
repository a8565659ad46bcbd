import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('..', import.meta.url))

/** On Windows npm's commands are scripts, which only a shell starts. */
export const shell = process.platform === 'win32'

/** The pnpm that package.json pins, from the npm registry. */
export const { packageManager } = JSON.parse(readFileSync(`${root}package.json`, 'utf8'))

function pnpm(...args) {
  const { fd } = process.stderr
  const env = { ...process.env, TURBO_TELEMETRY_DISABLED: '1' }
  execFileSync('npx', ['--yes', packageManager, ...args], { cwd: root, stdio: ['ignore', fd, fd], env, shell })
}

/** Turbo looks for pnpm on the PATH, where only pnpm's own child has it. */
export function turbo(task) {
  pnpm('exec', 'turbo', 'run', task, '--output-logs=errors-only')
}

/** Installs and builds what changed since the last time: the stamp is a hash of the lockfile and of every source. */
export function setUp() {
  once('install', ['pnpm-lock.yaml', 'package.json', ...manifests()], () => pnpm('install', '--frozen-lockfile'))
  once('build', ['pnpm-lock.yaml', 'tsup.preset.ts', 'tsconfig.base.json', ...manifests(), ...sources()], () =>
    turbo('build'),
  )
}

/** What turbo.json names as the inputs of a build, but for the manifests. */
const inputs = ['src', 'wasm', 'cubin', 'web', 'tsup.config.ts', 'tsconfig.json']

function once(name, files, action) {
  const hash = createHash('sha256')
  for (const file of files) hash.update(file).update(readFileSync(root + file))
  const digest = hash.digest('hex')
  const stamp = `${root}.cache/${name}`
  if (
    outputs(name).every((path) => existsSync(root + path)) &&
    existsSync(stamp) &&
    readFileSync(stamp, 'utf8') === digest
  )
    return
  process.stderr.write(`${name} …\n`)
  action()
  mkdirSync(`${root}.cache`, { recursive: true })
  writeFileSync(stamp, digest)
}

function folders() {
  return [
    ...['packages', 'apps'].flatMap((top) => readdirSync(root + top).map((name) => `${top}/${name}`)),
    'benchmarks',
  ]
}

function manifests() {
  return folders().map((folder) => `${folder}/package.json`)
}

function sources() {
  return folders().flatMap((folder) => inputs.flatMap((input) => filesAt(`${folder}/${input}`)))
}

function outputs(name) {
  const built = folders().filter((folder) => existsSync(`${root}${folder}/tsup.config.ts`))
  return name === 'install' ? ['node_modules'] : built.map((folder) => `${folder}/dist`)
}

function filesAt(path) {
  const stat = statSync(root + path, { throwIfNoEntry: false })
  if (!stat?.isDirectory()) return stat ? [path] : []
  return readdirSync(root + path).flatMap((name) => filesAt(`${path}/${name}`))
}
