import { setFlagsFromString } from 'node:v8'
import { UnsupportedError } from '@flashmla/spec'
import { relaxedModule, simdModule } from './modules.generated'
import type { WasmModule } from './webassembly'
import { WebAssembly } from './webassembly'

/** Which instructions the kernels use: `relaxed` fuses multiply and add. */
export type SimdLevel = 'simd' | 'relaxed'

const bytes = (base64: string) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))

function compile(code: Uint8Array): WasmModule | undefined {
  return WebAssembly!.validate(code) ? new WebAssembly!.Module(code) : undefined
}

/**
 * Node 20's V8 has relaxed SIMD, complete, behind a flag. A module keeps the features it was compiled with, so the flag
 * is on for these few milliseconds only: nothing else of the process sees it.
 */
function compileRelaxed(code: Uint8Array): WasmModule | undefined {
  const module = compile(code)
  if (module || !/^2[01]\./.test(process.versions.node)) return module
  setFlagsFromString('--experimental-wasm-relaxed-simd')
  try {
    return compile(code)
  } finally {
    setFlagsFromString('--no-experimental-wasm-relaxed-simd')
  }
}

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
    const module = level === 'relaxed' ? compileRelaxed(bytes(relaxedModule)) : compile(bytes(simdModule))
    if (module) return { level, module }
  }
  throw new UnsupportedError(
    `This runtime does not take WebAssembly ${asked === 'relaxed' ? 'relaxed ' : ''}SIMD with threads.`,
    asked === 'relaxed' ? "Leave 'simd' unset." : 'Use the reference backend, or Node 20 or later.',
  )
}
