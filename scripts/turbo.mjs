/** Runs one turbo task over all packages, on a machine that may have no pnpm: `node scripts/turbo.mjs <task>`. */
import { install, turbo } from './setup.mjs'

install()
turbo(process.argv[2], process.argv[2] === 'bench' ? 'full' : 'errors-only')
