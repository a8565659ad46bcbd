/**
 * What a user of npm gets: packs every published package, checks its shape (publint, are-the-types-wrong), installs it
 * from its tarball in an empty folder with what it needs, and runs the first code block of its README as ESM and as CJS.
 */
import { execFile } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { promisify } from 'node:util'
import ts from 'typescript'
import { packageManager, root, setUp } from './setup.mjs'

const exec = promisify(execFile)
const work = join(tmpdir(), `flashmla-packages-${process.pid}`)
const tarballs = join(work, 'tarballs')

setUp()
mkdirSync(tarballs, { recursive: true })
process.on('exit', () => rmSync(work, { recursive: true, force: true }))

const published = readdirSync(`${root}packages`)
  .map((folder) => ({ folder: `${root}packages/${folder}`, manifest: readManifest(`${root}packages/${folder}`) }))
  .filter(({ manifest }) => !manifest.private)
const packages = []
for (const entry of published) {
  if (await exportsSomething(entry)) packages.push(entry)
  else process.stdout.write(`– ${entry.manifest.name}: exports nothing yet, not checked\n`)
}
const byName = new Map(packages.map((entry) => [entry.manifest.name, entry]))

await Promise.all(
  packages.map(async (entry) => {
    await exec('npx', ['--yes', packageManager, '--dir', entry.folder, 'pack', '--pack-destination', tarballs])
    entry.tarball = join(tarballs, tarballName(entry.manifest))
  }),
)
const problems = await Promise.all(packages.map((entry) => check(entry).catch((error) => error)))
packages.forEach(({ manifest }, i) => {
  const problem = problems[i]
  process.stdout.write(
    problem
      ? `✗ ${manifest.name}\n${problem.stdout ?? ''}${problem.stderr ?? ''}${problem.message}\n`
      : `✓ ${manifest.name}: shape, types, install, README in ESM and CJS\n`,
  )
})
process.exitCode = problems.some(Boolean) ? 1 : 0

async function check(entry) {
  const bin = `${root}node_modules/.bin/`
  await exec(`${bin}publint`, ['--strict', entry.tarball])
  await exec(`${bin}attw`, [entry.tarball, '--no-emoji', '--no-color'])

  const code = example(entry)
  const folder = join(work, entry.manifest.name.replace('@flashmla/', ''))
  mkdirSync(folder)
  writeFileSync(join(folder, 'package.json'), '{ "private": true }')
  const names = closure([entry.manifest.name, ...imports(code).filter((name) => byName.has(name))])
  const files = [...names].map((name) => byName.get(name).tarball)
  await exec('npm', ['install', '--prefer-offline', '--no-audit', '--no-fund', '--no-save', ...files], { cwd: folder })
  writeFileSync(join(folder, 'example.mjs'), code)
  writeFileSync(join(folder, 'example.cjs'), toCommonJs(code))
  for (const file of ['example.mjs', 'example.cjs']) {
    await exec(process.execPath, [file], { cwd: folder, timeout: 60_000 })
  }
}

async function exportsSomething({ folder, manifest }) {
  const entry = join(folder, manifest.exports['.'].import.default)
  return Object.keys(await import(pathToFileURL(entry).href)).length > 0
}

/** The README's first code block, its types stripped. */
function example({ folder, manifest }) {
  const readme = join(folder, 'README.md')
  const block = existsSync(readme) && /```(?:ts|js)\n([\s\S]*?)```/.exec(readFileSync(readme, 'utf8'))
  if (!block) throw new Error(`${manifest.name} has no README with a ts or js block.`)
  const options = { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext, verbatimModuleSyntax: true }
  return ts.transpileModule(block[1], { compilerOptions: options }).outputText
}

function imports(code) {
  return [...code.matchAll(/from ['"](.+?)['"]/g)].map((match) => match[1])
}

function toCommonJs(code) {
  const statement = /^import (?:(\{[\s\S]*?\})|(\w+)) from (['"].+?['"]);?$/gm
  const required = code.replace(statement, (_, names, name, from) =>
    names ? `const ${names.replace(/ as /g, ': ')} = require(${from})` : `const ${name} = require(${from}).default`,
  )
  return `;(async () => {\n${required}\n})().catch((error) => { console.error(error); process.exitCode = 1 })\n`
}

/** The named packages and every package of this repository that they need. */
function closure(names) {
  const found = new Set()
  const visit = (name) => {
    if (found.has(name) || !byName.has(name)) return
    found.add(name)
    for (const dependency of Object.keys(byName.get(name).manifest.dependencies ?? {})) visit(dependency)
  }
  names.forEach(visit)
  return found
}

function readManifest(folder) {
  return JSON.parse(readFileSync(`${folder}/package.json`, 'utf8'))
}

function tarballName({ name, version }) {
  return `${name.replace('@', '').replace('/', '-')}-${version}.tgz`
}
