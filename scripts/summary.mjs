/** Prints the counts of the last `npm test`, from the reporter's JSON. */
import { readFileSync } from 'node:fs'
import { root } from './setup.mjs'

const { numPassedTests, numFailedTests, numPendingTests, numTodoTests } = JSON.parse(
  readFileSync(`${root}.cache/test-results.json`, 'utf8'),
)
const skipped = numPendingTests + numTodoTests
process.stdout.write(`${numPassedTests} passed, ${numFailedTests} failed${skipped ? `, ${skipped} skipped` : ''}\n`)
