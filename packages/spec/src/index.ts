/**
 * Interfaces, shapes and errors that the packages of FlashMLA for TypeScript share, and the checks of their arguments. No dependencies.
 *
 * @example
 * import { FlashMlaError, OutOfPagesError } from '@flashmla/spec'
 * try { throw new OutOfPagesError(3, 1) } catch (error) {
 *   if (FlashMlaError.isInstance(error)) console.log(error.code, error.message)
 * }
 */
export type {
  Backend,
  BatchCapacity,
  BatchStep,
  ExpertWeights,
  LinearProduct,
  Norm,
  PagedBatch,
  Rotation,
  RouterOptions,
  StepGraph,
} from './backend'
export type { CacheFormat, PagedCache } from './cache-format'
export { checkStep } from './check-step'
export { check } from './checks'
export { DRAW_COLUMNS, type Draw, packDraw } from './draw'
export type { ErrorCode } from './errors'
export {
  AbortedError,
  CheckpointError,
  DeadlineError,
  DisposedError,
  FlashMlaError,
  InvalidArgumentError,
  InvalidConfigError,
  OutOfPagesError,
  QueueFullError,
  UnsupportedError,
} from './errors'
export type { DType, HostArray, Tensor, Weight, WeightSource } from './tensor'
export { sizeOf } from './tensor'
