import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('..', import.meta.url))

export function run(command, args) {
  execFileSync(command, args, { cwd: root, stdio: ['ignore', process.stderr.fd, process.stderr.fd] })
}

/** The pnpm that package.json pins, from the npm registry. */
export const { packageManager } = JSON.parse(readFileSync(`${root}package.json`, 'utf8'))

function pnpm(...args) {
  run('npx', ['--yes', packageManager, ...args])
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

function once(name, files, action) {
  const hash = createHash('sha256')
  for (const file of files) hash.update(file).update(readFileSync(root + file))
  const digest = hash.digest('hex')
  const stamp = `${root}.cache/${name}`
  const intact = existsSync(`${root}node_modules`) && (name !== 'build' || existsSync(`${root}apps/demo/dist/cli.js`))
  if (intact && existsSync(stamp) && readFileSync(stamp, 'utf8') === digest) return
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
  return folders()
    .filter((folder) => existsSync(`${root}${folder}/src`))
    .flatMap((folder) => filesUnder(`${folder}/src`))
}

function filesUnder(folder) {
  return readdirSync(root + folder, { withFileTypes: true }).flatMap((entry) =>
    entry.isDirectory() ? filesUnder(`${folder}/${entry.name}`) : [`${folder}/${entry.name}`],
  )
}
