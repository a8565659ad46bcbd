import { defineConfig } from 'tsup'
import { library } from '../../tsup.preset'

// The probe's child process is a script of its own, beside the index.
export default defineConfig({ ...library, entry: ['src/index.ts', 'src/probe-child.ts'] })
