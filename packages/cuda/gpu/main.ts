// Everything that needs a device, without a test framework: `node scripts/gpu.mjs` runs it, and it runs from a bundle too.
import { Context, KernelLibrary, Stream } from '../src/index'
import { cases } from './cases'

const context = new Context({ device: Number(process.env.FLASHMLA_DEVICE ?? 0) })
const { device, driver } = context
console.log(`${device.name}, ${device.multiprocessors} SMs, CUDA ${driver.version}, Node ${process.version}`)
const stream = new Stream(context)
const library = new KernelLibrary(context)
console.log(library.why)
let failed = 0
for (const [name, run] of cases) {
  try {
    console.log(`ok   ${name}: ${run({ context, stream, library })}`)
  } catch (error) {
    failed++
    console.log(`FAIL ${name}: ${error instanceof Error ? error.stack : error}`)
  }
}
library[Symbol.dispose]()
stream[Symbol.dispose]()
if (failed === 0) context[Symbol.dispose]()
console.log(`${cases.length - failed} of ${cases.length} passed; ${driver.live.size} resources left`)
process.exitCode = failed === 0 && driver.live.size === 0 ? 0 : 1
