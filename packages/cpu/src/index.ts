/**
 * CPU backends for Multi-head Latent Attention: WebAssembly SIMD on worker threads, and the reference, plain loops that
 * every other backend is judged by.
 *
 * @example
 * import { createCpuBackend } from '@flashmla/cpu'
 * const backend = await createCpuBackend({ weights: 'bf16' })
 * const x = backend.tensor('f32', [1, 2])
 * backend.write(x, Float32Array.of(3, 4))
 * console.log(backend.name, await backend.read(x))
 * backend.dispose()
 */
export type { CpuBackend } from './fast/backend'
export type { CpuBackendOptions } from './fast/create'
export { createCpuBackend, openCpuBackend } from './fast/create'
export type { SimdLevel } from './fast/detect'
export type { QuantizationError, WeightPrecision } from './fast/weight'
export { ReferenceBackend } from './reference'
