import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

setFlagsFromString('--expose-gc')
const collect: () => void = runInNewContext('gc')

/** Median of seven runs after two to warm up: time, and heap that grew, per operation. */
export function measure(run: (operations: number) => void, operations: number): { nanoseconds: number; bytes: number } {
  for (let i = 0; i < 2; i++) run(operations)
  const times: number[] = []
  const growth: number[] = []
  for (let i = 0; i < 7; i++) {
    collect()
    const before = process.memoryUsage().heapUsed
    const start = process.hrtime.bigint()
    run(operations)
    times.push(Number(process.hrtime.bigint() - start))
    growth.push(process.memoryUsage().heapUsed - before)
  }
  return { nanoseconds: median(times) / operations, bytes: Math.max(0, median(growth)) / operations }
}

function median(values: number[]): number {
  return values.sort((a, b) => a - b)[values.length >> 1]!
}
