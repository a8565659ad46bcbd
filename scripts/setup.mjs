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
export function turbo(task, logs = 'errors-only') {
  pnpm('exec', 'turbo', 'run', task, `--output-logs=${logs}`)
}

export function install() {
  once('install', ['pnpm-lock.yaml', 'package.json', ...manifests()], () =>
    pnpm('install', '--frozen-lockfile', '--loglevel=error'),
  )
}

/** Installs and builds what changed since the last time: the stamp is a hash of the lockfile and of every source. */
export function setUp() {
  install()
  once('build', ['pnpm-lock.yaml', 'tsup.preset.ts', 'tsconfig.base.json', ...sources()], () => turbo('build'))
}

/** What no build reads. */
const ignored = /(^|\/)(node_modules|dist|\.turbo|fixtures|model|results)$|\.test\.ts$|\.md$/

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
  const nested = ['packages', 'apps'].flatMap((top) => readdirSync(root + top).map((name) => `${top}/${name}`))
  return [...nested, 'benchmarks'].filter((folder) => existsSync(`${root}${folder}/package.json`))
}

function manifests() {
  return folders().map((folder) => `${folder}/package.json`)
}

function builtFolders() {
  return folders().filter((folder) => existsSync(`${root}${folder}/tsup.config.ts`))
}

function sources() {
  return builtFolders().flatMap(filesAt)
}

function outputs(name) {
  return name === 'install' ? ['node_modules'] : builtFolders().map((folder) => `${folder}/dist`)
}

function filesAt(path) {
  if (ignored.test(path)) return []
  if (!statSync(root + path).isDirectory()) return [path]
  return readdirSync(root + path).flatMap((name) => filesAt(`${path}/${name}`))
}
