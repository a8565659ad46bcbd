import type { CacheFormat, PagedCache } from '@flashmla/spec'
import { DisposedError, InvalidArgumentError, UnsupportedError } from '@flashmla/spec'
import type { SharedHeap } from './heap'

const WORDS = 6
/** Tile rows are decoded to buffers of this width. */
const MAX_WIDTH = 1024

/** Code of wasm/cache.h, by the format's name and size. */
function formatCode({ name, kvLoraRank, ropeDim, bytesPerToken }: CacheFormat): number {
  const width = kvLoraRank + ropeDim
  if (name === `f32-${width}` && bytesPerToken === width * 4) return 0
  if (name === `bf16-${width}` && bytesPerToken === width * 2) return 1
  if (name === 'fp8-656' && bytesPerToken === 656) return 2
  if (name === 'fp8-584' && bytesPerToken === 584) return 3
  throw new UnsupportedError(
    `Cache format ${name} (${bytesPerToken} bytes a token) has no CPU kernel.`,
    'Use a format of @flashmla/latent, or the reference backend.',
  )
}

/** Paged cache in shared memory: `[numBlocks]` pages of `pageSize · bytesPerToken` bytes. */
export class FastCache implements PagedCache {
  readonly #descriptor: number
  readonly data: number
  readonly bytes: number
  #live = true

  constructor(
    readonly heap: SharedHeap,
    readonly format: CacheFormat,
    readonly numBlocks: number,
    readonly pageSize: number,
  ) {
    const code = formatCode(format)
    const width = format.kvLoraRank + format.ropeDim
    if (width > MAX_WIDTH)
      throw new UnsupportedError(`A cache row of ${width} values has no CPU kernel.`, `Up to ${MAX_WIDTH} are taken.`)
    if (!Number.isInteger(numBlocks) || numBlocks < 1 || !Number.isInteger(pageSize) || pageSize < 1)
      throw new InvalidArgumentError(
        `A cache of ${numBlocks} pages of ${pageSize} tokens can't be made.`,
        'Give whole numbers ≥ 1.',
      )
    this.bytes = numBlocks * pageSize * format.bytesPerToken
    this.data = heap.allocate(this.bytes)
    this.#descriptor = heap.allocate(WORDS * 4)
    heap.i32.set([this.data, code, pageSize, numBlocks, format.kvLoraRank, format.ropeDim], this.#descriptor / 4)
  }

  /** @throws DisposedError */
  get descriptor(): number {
    if (!this.#live) throw new DisposedError('A cache')
    return this.#descriptor
  }

  dispose(): void {
    if (!this.#live) return
    this.#live = false
    this.heap.retire(this.data, this.bytes)
    this.heap.retire(this.#descriptor, WORDS * 4)
  }
}
