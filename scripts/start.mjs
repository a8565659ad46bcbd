import { spawnSync } from 'node:child_process'
import { root, setUp } from './setup.mjs'

setUp()
const { status } = spawnSync(process.execPath, [`${root}apps/demo/dist/cli.js`, ...process.argv.slice(2)], {
  stdio: 'inherit',
})
process.exitCode = status ?? 1
