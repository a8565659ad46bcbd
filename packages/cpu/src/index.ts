/**
 * CPU backend for Multi-head Latent Attention: the reference, plain loops that every other backend is judged by.
 *
 * @example
 * import { ReferenceBackend } from '@flashmla/cpu'
 * const backend = new ReferenceBackend()
 * const x = backend.tensor('f32', [1, 2])
 * backend.write(x, Float32Array.of(3, 4))
 * console.log(await backend.read(x))
 */
export { ReferenceBackend } from './reference'
