/**
 * One contract suite that every backend of FlashMLA passes, with expected values from a float64 oracle of its own.
 *
 * @example
 * import { ReferenceBackend } from '@flashmla/cpu'
 * import { runBackendContract } from '@flashmla/testing'
 * import { describe, it } from 'vitest'
 * runBackendContract('reference', () => new ReferenceBackend(), { describe, it })
 */
export type { Tolerance } from './compare'
export { assertClose, assertSame, assertThrows, ContractError, float32Tolerance } from './compare'
export type { ContractCase, ContractOptions, Gap, TestFramework } from './contract'
export { contractCases, runBackendContract } from './contract'
export { drawBySorting } from './oracle/draw'
export { Random } from './random'
