import { readFileSync } from 'node:fs'
import { setFlagsFromString } from 'node:v8'
import { Worker } from 'node:worker_threads'

export interface Ceilings {
  /** Of a bare multiply-add loop on every thread, fused where the runtime has relaxed SIMD, as the kernels are. */
  readonly gflops: number
  /** Of a streaming read of memory far larger than the caches, on every thread. */
  readonly gbytes: number
}

/** TypeScript declares it only for browsers. */
const { WebAssembly } = globalThis as unknown as { WebAssembly: { validate(code: Uint8Array): boolean } }

/** Twelve vectors of four, a multiply and an add each. */
const FLOP_PER_ROUND = 12 * 4 * 2
const ROUNDS = 40_000_000
const STREAM_BYTES = 256 << 20

const source = `
const { parentPort, workerData } = require('node:worker_threads')
const memory = new WebAssembly.Memory({ initial: workerData.bytes / 65536 + 1 })
new Uint8Array(memory.buffer).fill(1)
const { exports } = new WebAssembly.Instance(new WebAssembly.Module(workerData.code), { env: { memory } })
exports.multiplyAdds(1000, 0.5); exports.stream(65536, 1 << 20)
parentPort.on('message', (what) => {
  const start = process.hrtime.bigint()
  if (what === 'multiplyAdds') exports.multiplyAdds(workerData.rounds, 0.5)
  else exports.stream(65536, workerData.bytes)
  parentPort.postMessage(Number(process.hrtime.bigint() - start))
})
parentPort.postMessage(0)
`

/** All threads run the same loop at once; the best of `runs`, by the slowest thread of each. */
export async function measureCeilings(threads: number, runs: number): Promise<Ceilings> {
  const [relaxed, simd] = ['relaxed', 'simd'].map((level) =>
    readFileSync(new URL(`./loops.${level}.wasm`, import.meta.url)),
  )
  // As the backend does for its kernels: Node 20 has relaxed SIMD behind this flag.
  if (/^2[01]\./.test(process.versions.node)) setFlagsFromString('--experimental-wasm-relaxed-simd')
  const code = WebAssembly.validate(relaxed!) ? relaxed! : simd!
  const workerData = { code, rounds: ROUNDS, bytes: STREAM_BYTES }
  const workers = Array.from({ length: threads }, () => new Worker(source, { eval: true, workerData, execArgv: [] }))
  const answers = () =>
    Promise.all(workers.map((worker) => new Promise<number>((resolve) => worker.once('message', resolve))))
  await answers()
  const best = async (what: string) => {
    let nanoseconds = Infinity
    for (let run = 0; run < runs; run++) {
      const done = answers()
      for (const worker of workers) worker.postMessage(what)
      nanoseconds = Math.min(nanoseconds, Math.max(...(await done)))
    }
    return nanoseconds
  }
  const arithmetic = await best('multiplyAdds')
  const reading = await best('stream')
  await Promise.all(workers.map((worker) => worker.terminate()))
  return { gflops: (threads * ROUNDS * FLOP_PER_ROUND) / arithmetic, gbytes: (threads * STREAM_BYTES) / reading }
}
