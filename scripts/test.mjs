import { spawnSync } from 'node:child_process'
import { root, setUp } from './setup.mjs'

setUp()
const reporters = ['--reporter=default', '--reporter=json', '--outputFile.json=.cache/test-results.json']
const vitest = `${root}node_modules/vitest/vitest.mjs`
const { status } = spawnSync(process.execPath, [vitest, 'run', ...reporters, ...process.argv.slice(2)], {
  cwd: root,
  stdio: 'inherit',
})
process.exitCode = status ?? 1
