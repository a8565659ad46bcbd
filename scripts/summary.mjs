/** Prints the counts of the last `npm test`, from the reporter's JSON. */
import { existsSync, readFileSync } from 'node:fs'
import { root } from './setup.mjs'

const file = `${root}.cache/test-results.json`
if (existsSync(file)) {
  const { numPassedTests, numFailedTests, numPendingTests, numTodoTests } = JSON.parse(readFileSync(file, 'utf8'))
  const skipped = numPendingTests + numTodoTests
  process.stdout.write(`${numPassedTests} passed, ${numFailedTests} failed${skipped ? `, ${skipped} skipped` : ''}\n`)
} else {
  process.stderr.write('npm test ended without results.\n')
  process.exitCode = 1
}
