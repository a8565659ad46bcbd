import { InvalidArgumentError } from '@flashmla/spec'
import type { BlockColumns } from '../columns'
import { HeapPolicy } from './heap'
import { LruPolicy } from './lru'

/** What a policy may order blocks by; see {@link BlockColumns}. */
export type BlockHistory = Pick<BlockColumns, 'storedAt' | 'idleSince' | 'hits' | 'priority'>

/**
 * Chooses which idle block to give up. It is told only of leaves, blocks that no stored block continues, so whatever it
 * chooses, the tail of a sequence goes first. The history of a block does not change while the policy holds it.
 */
export interface EvictionPolicy {
  /** Blocks it holds. */
  readonly size: number
  insert(block: number): void
  /** Called only with a block that it holds. */
  remove(block: number): void
  /** Takes out the next victim. Called only while size > 0. */
  evict(): number
}

export type EvictionPolicyFactory = (history: BlockHistory) => EvictionPolicy

export type EvictionPolicyName = 'lru' | 'lfu' | 'fifo' | 'priority'

/**
 * - `lru`: the longest idle goes first. O(1).
 * - `lfu`: the least often found goes first. O(log n), as the two below; ties go by idle time.
 * - `fifo`: the first stored goes first.
 * - `priority`: the lowest priority goes first.
 */
export const evictionPolicies: Readonly<Record<EvictionPolicyName, EvictionPolicyFactory>> = {
  lru: (history) => new LruPolicy(history.idleSince),
  lfu: (history) => new HeapPolicy(history.hits, history.idleSince),
  fifo: (history) => new HeapPolicy(history.storedAt, history.idleSince),
  priority: (history) => new HeapPolicy(history.priority, history.idleSince),
}

export function evictionPolicy(policy: EvictionPolicyName | EvictionPolicyFactory): EvictionPolicyFactory {
  if (typeof policy === 'function') return policy
  if (Object.hasOwn(evictionPolicies, policy)) return evictionPolicies[policy]
  throw new InvalidArgumentError(
    `There is no eviction policy ${JSON.stringify(policy)}.`,
    `Use ${Object.keys(evictionPolicies).join(', ')}, or a function that makes one.`,
  )
}
