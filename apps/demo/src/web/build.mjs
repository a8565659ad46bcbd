import { copyFile, mkdir } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const here = fileURLToPath(new URL('.', import.meta.url))

/** Bundles the page into a folder: index.html, main.js, main.css. Nothing in it is loaded from elsewhere. */
export async function buildWeb(outdir) {
  await mkdir(outdir, { recursive: true })
  await build({
    entryPoints: [`${here}main.tsx`],
    outdir,
    bundle: true,
    minify: true,
    format: 'esm',
    target: 'es2022',
    jsx: 'automatic',
    jsxImportSource: 'preact',
    logLevel: 'warning',
  })
  await copyFile(`${here}index.html`, `${outdir}/index.html`)
}

if (process.argv[1] === fileURLToPath(import.meta.url))
  await buildWeb(fileURLToPath(new URL('../../dist/web', import.meta.url)))
