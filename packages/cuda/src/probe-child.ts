import { probeHere } from './probe'

// The parent reads the one message; a crash before it is the parent's to report.
process.send?.(probeHere())
process.disconnect?.()
