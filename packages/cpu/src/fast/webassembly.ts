/** The part of WebAssembly's JavaScript interface that is used here; TypeScript declares it only for browsers. */
export interface WasmMemory {
  readonly buffer: SharedArrayBuffer
  grow(pages: number): number
}

/** Compiled code; can be posted to workers. */
export interface WasmModule {
  readonly [Symbol.toStringTag]: string
}

interface WebAssemblyApi {
  readonly Memory: new (options: { initial: number; maximum: number; shared: true }) => WasmMemory
  readonly Module: new (code: Uint8Array) => WasmModule
  readonly Instance: new (module: WasmModule, imports: object) => { readonly exports: object }
  validate(code: Uint8Array): boolean
}

/** Undefined where the runtime was started without it. */
export const WebAssembly = (globalThis as unknown as { WebAssembly?: WebAssemblyApi }).WebAssembly
