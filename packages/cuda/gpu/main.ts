// Everything that needs a device, without a test framework: `node scripts/gpu.mjs` runs it, and it runs from a bundle too. A word behind it, or
// FLASHMLA_CASES, runs only the cases with that in their name, and those that need gigabytes only then.
import { Context, CudaUnavailableError } from '../src/index'
import { cases } from './cases'
import { close, machineOn } from './machine'
import { large } from './v2-lite'

function open(): Context {
  try {
    return new Context({ device: Number(process.env.FLASHMLA_DEVICE ?? 0) })
  } catch (error) {
    if (!(error instanceof CudaUnavailableError)) throw error
    console.error(error.message)
    process.exit(1)
  }
}

const name = process.argv[2] ?? process.env.FLASHMLA_CASES
const wanted = name ? [...cases, ...large].filter((each) => each[0].includes(name)) : cases
if (wanted.length === 0) {
  console.error(`No case has "${name}" in its name.`)
  process.exit(1)
}

const context = open()
const { device, driver } = context
console.log(`${device.name}, ${device.multiprocessors} SMs, CUDA ${driver.version}, Node ${process.version}`)
const machine = machineOn(context)
console.log(machine.library.why)
let failed = 0
/** Cases kept of each group whose lines would be many. */
const kept = new Map<string, number>()
for (const [name, run] of wanted) {
  try {
    const found = await run(machine)
    const group = name.startsWith('contract') ? name.slice(0, name.indexOf(':')) : undefined
    if (group) kept.set(group, (kept.get(group) ?? 0) + 1)
    else console.log(`ok   ${name}: ${found}`)
  } catch (error) {
    failed++
    console.log(`FAIL ${name}: ${error instanceof Error ? error.stack : error}`)
  }
}
for (const [group, count] of kept) console.log(`ok   ${group}: ${count} cases kept`)
await close(machine)
if (failed === 0) context[Symbol.dispose]()
console.log(`${wanted.length - failed} of ${wanted.length} passed; ${driver.live.size} resources left`)
process.exitCode = failed === 0 && driver.live.size === 0 ? 0 : 1
