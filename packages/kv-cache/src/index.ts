/**
 * Paged block allocator for variable-length sequences. No tensors, no devices.
 *
 * @example
 * import { BlockPool, PagedSequence } from '@flashmla/kv-cache'
 * const pool = new BlockPool(8)
 * const sequence = new PagedSequence(pool, 64)
 * sequence.append(100)
 * console.log(sequence.blocks, sequence.slot(99), pool.numFree)
 */
export { BlockPool } from './block-pool'
export type { BlockCopy } from './sequence'
export { PagedSequence } from './sequence'
