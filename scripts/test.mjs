import { spawnSync } from 'node:child_process'
import { readFileSync, rmSync } from 'node:fs'
import { root, setUp } from './setup.mjs'

const results = `${root}.cache/test-results.json`

/** What was skipped and why: the reporter counts it, and keeps the reason to itself. */
function tellSkipped() {
  const reasons = new Map()
  for (const { assertionResults } of JSON.parse(readFileSync(results, 'utf8')).testResults)
    for (const { status, ancestorTitles, title } of assertionResults) {
      if (status === 'passed' || status === 'failed') continue
      const reason = ancestorTitles[0] ?? title
      reasons.set(reason, (reasons.get(reason) ?? 0) + 1)
    }
  for (const [reason, count] of reasons) process.stdout.write(`${count} skipped: ${reason}\n`)
}

setUp()
rmSync(results, { force: true })
const reporters = ['--reporter=default', '--reporter=json', '--outputFile.json=.cache/test-results.json']
const vitest = `${root}node_modules/vitest/vitest.mjs`
const { status } = spawnSync(process.execPath, [vitest, 'run', ...reporters, ...process.argv.slice(2)], {
  cwd: root,
  stdio: 'inherit',
})
process.exitCode = status ?? 1
if (status === 0) tellSkipped()
