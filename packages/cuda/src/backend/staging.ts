import { download } from '../driver/copy'
import { type DeviceMemory, PinnedMemory } from '../driver/memory'
import { Event } from '../driver/stream'
import type { BackendDevice } from './device'

const SMALLEST = 65536

interface Buffer {
  readonly pinned: PinnedMemory
  readonly event: Event
}

/** Copies to the host through pinned memory, which the device fills while the event loop runs on. Buffers are used again. */
export class Staging {
  readonly #free: Buffer[] = []

  constructor(private readonly device: BackendDevice) {}

  /** Queues the copy now; resolves with its bytes in `target`. Rejects with the CudaError of work queued before. */
  async read(source: DeviceMemory, byteOffset: number, target: ArrayBufferView): Promise<void> {
    const bytes = target.byteLength
    if (bytes === 0) return
    const { stream } = this.device
    const buffer = this.#take(bytes)
    download(stream, source, buffer.pinned.view.subarray(0, bytes), byteOffset)
    buffer.event.record(stream)
    await buffer.event.finished()
    buffer.pinned.read(target)
    this.#free.push(buffer)
  }

  #take(bytes: number): Buffer {
    const fitting = this.#free.findIndex(({ pinned }) => pinned.byteLength >= bytes)
    if (fitting >= 0) return this.#free.splice(fitting, 1)[0]!
    const { context } = this.device
    const size = Math.max(SMALLEST, 2 ** Math.ceil(Math.log2(bytes)))
    return { pinned: this.device.own(new PinnedMemory(context, size)), event: this.device.own(new Event(context)) }
  }
}
