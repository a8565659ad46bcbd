import { bf16Format, bf16ToFloat, floatToBf16, fp8V32Format, halfToFloat } from '@flashmla/latent'
import { append, copy, DeviceMemory, decode, download, Graph, planDecode, Stream, upload } from '../src/index'
import type { Machine } from './machine'

/** Values in [−1, 1), the same on every run (Lehmer). */
export function values(n: number, seed: number): Float32Array {
  let state = seed
  return Float32Array.from({ length: n }, () => {
    state = (state * 48271) % 2147483647
    return (state / 2147483647) * 2 - 1
  })
}

export function memoryOf(stream: Stream, data: ArrayBufferView): DeviceMemory {
  const memory = new DeviceMemory(stream, data.byteLength)
  upload(stream, memory, data)
  return memory
}

export function read<T extends ArrayBufferView>(stream: Stream, memory: DeviceMemory, target: T): T {
  download(stream, memory, target)
  stream.synchronize()
  return target
}

/** The 16-bit word of a value that bf16 has too, and of NaN; what is below 2⁻¹⁴ becomes 0. */
function halfOf(value: number): number {
  if (Number.isNaN(value)) return 0x7e00
  const word = floatToBf16(value)
  const exponent = ((word >> 7) & 0xff) - 127 + 15
  return exponent <= 0 ? 0 : ((word >> 15) << 15) | (exponent << 10) | ((word & 0x7f) << 3)
}
const WORDS = {
  bf16: { of: floatToBf16, value: bf16ToFloat },
  f16: { of: halfOf, value: halfToFloat },
}

export interface DecodeCase {
  /** bf16 without it. */
  dtype?: keyof typeof WORDS
  /** The queries' without it. */
  outDtype?: 'f32'
  hQ: number
  /** Query rows of each sequence, or the most of them. */
  sQ: number
  /** Query rows of each sequence, where they differ. */
  queries?: number[]
  pageSize: number
  lengths: number[]
  expectedTokens?: number
  expectedLongest?: number
}

/** Inputs of a case: pages in shuffled order, every slot that must not be read NaN, block ids past the end absurd. */
export function inputs({ dtype = 'bf16', hQ, sQ, queries, pageSize, lengths }: DecodeCase) {
  const { of } = WORDS[dtype]
  const rounded = (source: Float32Array) => Uint16Array.from(source, of)
  const queryStart = new Int32Array(lengths.length + 1)
  for (const s of lengths.keys()) queryStart[s + 1] = queryStart[s]! + (queries?.[s] ?? sQ)
  const pages = lengths.map((length) => Math.ceil(length / pageSize))
  const numBlocks = pages.reduce((a, b) => a + b, 1)
  const stride = Math.max(...pages, 1)
  const q = rounded(values(queryStart.at(-1)! * hQ * 576, 7))
  const kv = new Uint16Array(numBlocks * pageSize * 576).fill(of(Number.NaN))
  const table = new Int32Array(lengths.length * stride).fill(0x7fff_ffff)
  const row = rounded(values(576 * 64, 11))
  let block = numBlocks - 1
  for (const [s, length] of lengths.entries()) {
    for (let page = 0; page < pages[s]!; page++) table[s * stride + page] = block--
    for (let t = 0; t < length; t++) {
      const slot = table[s * stride + Math.floor(t / pageSize)]! * pageSize + (t % pageSize)
      const from = ((t * 13 + s * 5) % 64) * 576
      for (let c = 0; c < 576; c++) kv[slot * 576 + c] = row[from + ((c * 7 + t) % 576)]!
    }
  }
  return { q, kv, table, stride, numBlocks, queryStart, seqLens: Int32Array.from(lengths) }
}

/** Float64 attention of one case: out and natural-log sums. */
function expected(given: DecodeCase, { q, kv, table, stride, queryStart }: ReturnType<typeof inputs>, scale: number) {
  const { dtype = 'bf16', hQ, pageSize, lengths } = given
  const qf = Float64Array.from(q, WORDS[dtype].value)
  const kvf = Float64Array.from(kv, WORDS[dtype].value)
  const out = new Float64Array((q.length / 576) * 512)
  const lse = new Float64Array(q.length / 576)
  for (const [s, length] of lengths.entries()) {
    const base = Array.from(
      { length },
      (_, t) => (table[s * stride + Math.floor(t / pageSize)]! * pageSize + (t % pageSize)) * 576,
    )
    const queries = queryStart[s + 1]! - queryStart[s]!
    for (let i = 0; i < queries * hQ; i++) {
      const row = queryStart[s]! * hQ + i
      const visible = Math.max(length - queries + Math.floor(i / hQ) + 1, 0)
      const scores = base.slice(0, visible).map((at) => {
        let sum = 0
        for (let c = 0; c < 576; c++) sum += qf[row * 576 + c]! * kvf[at + c]!
        return sum * scale
      })
      const max = scores.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY)
      const powers = scores.map((score) => Math.exp(score - max))
      const total = powers.reduce((a, b) => a + b, 0)
      lse[row] = visible ? max + Math.log(total) : Number.NEGATIVE_INFINITY
      for (let t = 0; t < visible; t++)
        for (let c = 0; c < 512; c++) out[row * 512 + c]! += (powers[t]! / total) * kvf[base[t]! + c]!
    }
  }
  return { out, lse }
}

/** @throws when the results differ by more than the tolerances of the kernels: 5e-3 relative L2, 1e-4 of the log-sum-exp */
function compare(what: string, out: Float32Array, lse: Float32Array, right: ReturnType<typeof expected>): string {
  let [difference, norm, worst] = [0, 0, 0]
  for (const [i, value] of right.out.entries()) {
    const found = out[i]!
    if (Number.isNaN(found)) throw new Error(`${what}: out[${i}] is NaN`)
    difference += (found - value) ** 2
    norm += value ** 2
  }
  for (const [i, value] of right.lse.entries()) if (lse[i] !== value) worst = Math.max(worst, Math.abs(lse[i]! - value))
  const l2 = Math.sqrt(difference / Math.max(norm, 1e-30))
  if (!(l2 < 5e-3) || !(worst < 1e-4)) throw new Error(`${what}: relative L2 ${l2}, log-sum-exp off by ${worst}`)
  return `relative L2 ${l2.toExponential(2)}, lse ${worst.toExponential(2)}`
}

/** Runs a case directly, then as a graph replayed over lengths that were rewritten in place. */
export function checkDecode({ stream, library }: Machine, given: DecodeCase): string {
  const scale = 576 ** -0.5
  const input = inputs(given)
  const { dtype = 'bf16', outDtype = dtype } = given
  const rows = input.q.length / 576
  using q = memoryOf(stream, input.q)
  using kv = memoryOf(stream, input.kv)
  using blockTable = memoryOf(stream, input.table)
  using seqLens = memoryOf(stream, input.seqLens)
  using out = new DeviceMemory(stream, rows * 512 * (outDtype === 'f32' ? 4 : 2))
  using lse = new DeviceMemory(stream, rows * 4)
  using starts = memoryOf(stream, input.queryStart)
  const { numBlocks, stride: blockTableStride } = input
  const tensors = { q, kv, numBlocks, blockTable, blockTableStride, seqLens, out, lse, scale }
  const ragged = given.queries ? { totalQueries: input.queryStart.at(-1)! } : {}
  using plan = planDecode(library, stream, { dtype, batch: given.lengths.length, ...given, ...ragged })
  const all = given.queries ? { ...tensors, queryStart: starts } : tensors
  decode(plan, all)
  const result = () => {
    const found =
      outDtype === 'f32'
        ? read(stream, out, new Float32Array(rows * 512))
        : Float32Array.from(read(stream, out, new Uint16Array(rows * 512)), WORDS[outDtype].value)
    return [found, read(stream, lse, new Float32Array(rows))] as const
  }
  const direct = compare(plan.symbol, ...result(), expected(given, input, scale))
  using graph = new Graph(stream, () => decode(plan, all))
  const shorter = { ...given, lengths: given.lengths.map((length) => Math.floor(length / 2)) }
  upload(stream, seqLens, Int32Array.from(shorter.lengths))
  graph.replay(stream)
  compare(`${plan.symbol} replayed`, ...result(), expected(shorter, input, scale))
  return `${plan.symbol}: ${direct}`
}

/** Appends rows in both formats and compares the cache with the host codec byte for byte. */
export function checkAppend({ stream, library }: Machine): string {
  const n = 9
  const rows = values(n * 576, 5)
  const slots = Int32Array.of(3, 17, -1, 31, 16, 0, 40, 47, 5)
  using latent = memoryOf(stream, rows)
  using places = memoryOf(stream, slots)
  for (const [name, format] of [
    ['bf16', bf16Format(512, 64)],
    ['fp8', fp8V32Format],
  ] as const) {
    const page = 16 * format.bytesPerToken
    const right = new Uint8Array(3 * page)
    using cache = memoryOf(stream, right)
    append(library, stream, {
      latent,
      latentDtype: 'f32',
      n,
      slots: places,
      cache,
      format: name,
      pageSize: 16,
    })
    for (const [i, slot] of slots.entries()) {
      const block = Math.floor(slot / 16)
      if (slot >= 0) format.encode(rows, i * 576, right.subarray(block * page, (block + 1) * page), 16, slot % 16)
    }
    const found = read(stream, cache, new Uint8Array(right.length))
    const wrong = found.findIndex((byte, i) => byte !== right[i])
    if (wrong >= 0) throw new Error(`append ${name}: byte ${wrong} is ${found[wrong]}, not ${right[wrong]}`)
  }
  return 'bf16-576 and fp8-656 equal the host codec'
}

/** Host microseconds of a decode with a ready plan, and of a graph replay: medians over batches of 20. */
export function timeLaunches({ stream, library }: Machine): string {
  const given = { hQ: 16, sQ: 1, pageSize: 64, lengths: [64, 64] }
  const input = inputs(given)
  using q = memoryOf(stream, input.q)
  using kv = memoryOf(stream, input.kv)
  using blockTable = memoryOf(stream, input.table)
  using seqLens = memoryOf(stream, input.seqLens)
  using out = new DeviceMemory(stream, 32 * 1024)
  using lse = new DeviceMemory(stream, 32 * 4)
  const { numBlocks, stride: blockTableStride } = input
  const tensors = { q, kv, numBlocks, blockTable, blockTableStride, seqLens, out, lse, scale: 0.04 }
  using plan = planDecode(library, stream, { dtype: 'bf16', batch: 2, ...given })
  const median = (work: () => void) => {
    const times: number[] = []
    for (let round = 0; round < 200; round++) {
      const start = process.hrtime.bigint()
      for (let i = 0; i < 20; i++) work()
      times.push(Number(process.hrtime.bigint() - start) / 20e3)
      stream.synchronize()
    }
    return times.slice(100).sort((a, b) => a - b)[50]!
  }
  const direct = median(() => decode(plan, tensors))
  using graph = new Graph(stream, () => decode(plan, tensors))
  const replay = median(() => graph.replay(stream))
  return `decode ${direct.toFixed(2)} µs (bar 15), graph replay ${replay.toFixed(2)} µs (bar 5)`
}

/** Round trips through the stream-ordered pool on a second stream. */
export function checkCopies({ context }: Machine): string {
  using stream = new Stream(context)
  const data = values(1 << 20, 3)
  using first = memoryOf(stream, data)
  using second = new DeviceMemory(stream, data.byteLength)
  copy(stream, second, first, { bytes: data.byteLength })
  const back = read(stream, second, new Float32Array(data.length))
  if (!back.every((value, i) => value === data[i])) throw new Error('The copy differs.')
  return `${data.byteLength} bytes there and back`
}
