import { UnsupportedError } from '@flashmla/spec'
import { relaxedModule, simdModule } from './modules.generated'
import type { WasmModule } from './webassembly'
import { WebAssembly } from './webassembly'

/** Which instructions the kernels use: `relaxed` fuses multiply and add. */
export type SimdLevel = 'simd' | 'relaxed'

const bytes = (base64: string) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))

/**
 * The best module that this runtime takes, or the one asked for.
 * @throws UnsupportedError without WebAssembly SIMD, shared memory or the level asked for
 */
export function selectModule(asked?: SimdLevel): { level: SimdLevel; module: WasmModule } {
  if (!WebAssembly || typeof SharedArrayBuffer === 'undefined') {
    throw new UnsupportedError(
      'This runtime has no WebAssembly or no shared memory.',
      'Use the reference backend, or a runtime with both: Node 20 or later.',
    )
  }
  for (const level of asked ? [asked] : (['relaxed', 'simd'] as const)) {
    const code = bytes(level === 'relaxed' ? relaxedModule : simdModule)
    if (WebAssembly.validate(code)) return { level, module: new WebAssembly.Module(code) }
  }
  throw new UnsupportedError(
    `This runtime does not take WebAssembly ${asked === 'relaxed' ? 'relaxed ' : ''}SIMD with threads.`,
    asked === 'relaxed' ? "Leave 'simd' unset." : 'Use the reference backend, or Node 20 or later.',
  )
}
