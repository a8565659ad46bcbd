import type { Options } from 'tsup'

/** The one build shape of every published package: ESM, CJS, declarations for both, source maps. */
export const library: Options = {
  entry: ['src/index.ts'],
  format: ['esm', 'cjs'],
  target: 'node20',
  dts: true,
  sourcemap: true,
  clean: true,
  shims: true,
}
