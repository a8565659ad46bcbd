import { fileURLToPath } from 'node:url'
import { setUp } from './setup.mjs'

setUp()
// In this process: a signal that ends it reaches the command, which may have to drain.
const entry = new URL('../apps/demo/dist/cli.js', import.meta.url)
process.argv[1] = fileURLToPath(entry)
await import(entry)
