/**
 * Paged KV cache for any inference engine: a block allocator for variable-length sequences and a prefix cache over it.
 * No tensors, no devices: block ids in, block tables out.
 *
 * @example
 * import { PagedKvCache } from '@flashmla/kv-cache'
 * const cache = new PagedKvCache({ numBlocks: 1024, pageSize: 16 })
 * const prompt = Array.from({ length: 100 }, (_, i) => i)
 * const first = cache.allocate({ tokens: prompt, salt: 'tenant-1' })
 * first.commit() // its latents are written: full blocks can be shared from now on
 * const second = cache.allocate({ tokens: prompt, salt: 'tenant-1' })
 * console.log(second.cachedTokens, second.blocks, cache.stats())
 */
export type { BlockPoolState, Retention } from './block-pool'
export { BlockPool } from './block-pool'
export type { BlockTableOptions } from './block-table'
export { BlockTable } from './block-table'
export { CachedSequence } from './cached-sequence'
export type { CacheEvent, CacheListener, LostEvents } from './events'
export type { BlockHistory, EvictionPolicy, EvictionPolicyFactory, EvictionPolicyName } from './eviction/policy'
export { evictionPolicies } from './eviction/policy'
export type { BlockHash } from './hash'
export { hashBlock } from './hash'
export type { CacheStats, PagedKvCacheOptions, PagedKvCacheSettings, SequenceRequest } from './paged-kv-cache'
export { PagedKvCache } from './paged-kv-cache'
export type { BlockCopy } from './sequence'
export { PagedSequence } from './sequence'
