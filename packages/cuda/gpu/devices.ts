import { InvalidArgumentError } from '@flashmla/spec'
import { Context, type DecodeTensors, DeviceMemory, decode, KernelLibrary, planDecode, Stream } from '../src/index'
import { type DecodeCase, inputs, memoryOf, read } from './decode'
import type { Machine } from './machine'

const given: DecodeCase = { hQ: 128, sQ: 1, pageSize: 64, lengths: [5000, 300, 1, 0] }
const shape = { dtype: 'bf16', batch: given.lengths.length, ...given } as const

/** Queues the case and does not wait for it. What it makes is added to `made`, to be disposed of in reverse. */
function queue(stream: Stream, library: KernelLibrary, made: Disposable[]): DecodeTensors {
  const keep = <T extends Disposable>(resource: T): T => {
    made.push(resource)
    return resource
  }
  const { q, kv, table, stride, numBlocks, seqLens } = inputs(given)
  const rows = given.lengths.length * given.hQ
  const tensors = {
    q: keep(memoryOf(stream, q)),
    kv: keep(memoryOf(stream, kv)),
    numBlocks,
    blockTable: keep(memoryOf(stream, table)),
    blockTableStride: stride,
    seqLens: keep(memoryOf(stream, seqLens)),
    out: keep(new DeviceMemory(stream, rows * 1024)),
    lse: keep(new DeviceMemory(stream, rows * 4)),
    scale: 0.04,
  }
  decode(keep(planDecode(library, stream, shape)), tensors)
  return tensors
}

const bitsOf = (stream: Stream, { out }: DecodeTensors) => read(stream, out, new Uint16Array(out.bytes / 2))

/** The same decode on every device of the machine at once: equal bits, and what is of one device is refused by another. */
export function checkDevices({ context, library, stream }: Machine): string {
  const { driver, device } = context
  const made: Disposable[] = []
  try {
    const mine = queue(stream, library, made)
    const others: { readonly stream: Stream; readonly tensors: DecodeTensors }[] = []
    for (let ordinal = 0; ordinal < driver.deviceCount; ordinal++) {
      if (ordinal === device.ordinal) continue
      const other = new Context({ device: ordinal, driver })
      made.push(other)
      const kernels = new KernelLibrary(other)
      made.push(kernels)
      const queued = new Stream(other)
      made.push(queued)
      if (kernels.target === library.target) others.push({ stream: queued, tensors: queue(queued, kernels, made) })
    }
    const right = bitsOf(stream, mine)
    for (const { stream: queued, tensors } of others) {
      const differs = bitsOf(queued, tensors).findIndex((bits, i) => bits !== right[i])
      if (differs >= 0) throw new Error(`${queued.context.device.name} differs from ${device.name} at out[${differs}]`)
      const plan = planDecode(library, stream, shape)
      made.push(plan)
      if (!refuses(() => decode(plan, { ...mine, seqLens: tensors.seqLens })))
        throw new Error('Lengths on another device were taken.')
    }
    return others.length > 0 ? `${others.length + 1} devices give the same bits` : 'one device only'
  } finally {
    for (const resource of made.reverse()) resource[Symbol.dispose]()
  }
}

function refuses(work: () => void): boolean {
  try {
    work()
    return false
  } catch (error) {
    return error instanceof InvalidArgumentError
  }
}
