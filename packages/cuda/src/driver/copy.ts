import { InvalidArgumentError } from '@flashmla/spec'
import { bytesOf } from './driver'
import { DeviceMemory, PinnedMemory } from './memory'
import type { Stream } from './stream'

/**
 * Queues a copy of host bytes to the device. Ordinary arrays may be changed once this returns; pinned memory only
 * after the stream has passed the copy. In a capture only pinned memory may be copied: a replay copies it anew.
 * @throws InvalidArgumentError outside the memory, or for memory of another context; CudaError
 */
export function upload(stream: Stream, target: DeviceMemory, source: ArrayBufferView | PinnedMemory, offset = 0): void {
  checkPlaces(stream, source, target)
  checkRange(target, offset, source.byteLength, 'target')
  if (source.byteLength === 0) return
  const address = target.address + BigInt(offset)
  stream.context.call('cuMemcpyHtoDAsync_v2', address, hostBytes(source), source.byteLength, stream.handle)
}

/** Queues a copy of device bytes to the host; read them after `stream.synchronize()` or `await stream.finished()`. */
export function download(
  stream: Stream,
  source: DeviceMemory,
  target: ArrayBufferView | PinnedMemory,
  offset = 0,
): void {
  checkPlaces(stream, source, target)
  checkRange(source, offset, target.byteLength, 'source')
  if (target.byteLength === 0) return
  const address = source.address + BigInt(offset)
  stream.context.call('cuMemcpyDtoHAsync_v2', hostBytes(target), address, target.byteLength, stream.handle)
}

/** Queues a copy between two places of a context. Ranges must not overlap. */
export function copy(
  stream: Stream,
  target: DeviceMemory,
  source: DeviceMemory,
  range: { bytes: number; targetOffset?: number; sourceOffset?: number },
): void {
  const { bytes, targetOffset = 0, sourceOffset = 0 } = range
  checkPlaces(stream, source, target)
  checkRange(target, targetOffset, bytes, 'target')
  checkRange(source, sourceOffset, bytes, 'source')
  if (bytes === 0) return
  const to = target.address + BigInt(targetOffset)
  stream.context.call('cuMemcpyDtoDAsync_v2', to, source.address + BigInt(sourceOffset), bytes, stream.handle)
}

/** Queues the writing of one byte value all over a memory. */
export function fill(stream: Stream, target: DeviceMemory, byte: number): void {
  checkPlaces(stream, target)
  stream.context.call('cuMemsetD8Async', target.address, byte & 255, target.bytes, stream.handle)
}

function hostBytes(memory: ArrayBufferView | PinnedMemory): Uint8Array {
  if (!(memory instanceof PinnedMemory)) return bytesOf(memory)
  memory.context.captured?.add(memory)
  return memory.view
}

function checkPlaces(stream: Stream, ...places: (DeviceMemory | PinnedMemory | ArrayBufferView)[]): void {
  for (const place of places) {
    if (place instanceof DeviceMemory || place instanceof PinnedMemory) stream.context.demand(place, place.what)
    else if (stream.recording)
      throw new InvalidArgumentError(
        "A copy from or to an ordinary array can't be captured: a replay would use memory that may be gone by then.",
        'Copy before the capture, or use PinnedMemory and keep it as long as the graph.',
      )
  }
}

function checkRange(memory: DeviceMemory, offset: number, bytes: number, role: string): void {
  if (
    Number.isSafeInteger(offset) &&
    Number.isSafeInteger(bytes) &&
    offset >= 0 &&
    bytes >= 0 &&
    offset + bytes <= memory.bytes
  ) {
    return
  }
  throw new InvalidArgumentError(
    `Bytes ${offset} to ${offset + bytes} lie outside the copy's ${role} of ${memory.bytes} bytes.`,
    'Nothing was copied. Give an offset and a length inside the memory.',
  )
}
