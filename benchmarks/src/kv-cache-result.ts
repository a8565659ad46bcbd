import { writeFileSync } from 'node:fs'
import { cpus, totalmem } from 'node:os'
import { fileURLToPath } from 'node:url'

const folder = fileURLToPath(new URL('../results/', import.meta.url))

export interface Result {
  readonly pageSize: number
  readonly sequences: number
  readonly machine: string
  readonly rows: readonly {
    readonly name: string
    readonly unit: string
    readonly numBlocks: number
    readonly nanoseconds: number
    readonly million: number
    readonly heapBytes: number
  }[]
}

export function machine(): string {
  const processors = cpus()
  return `${processors[0]?.model.trim()} × ${processors.length}, ${Math.round(totalmem() / 2 ** 30)} GiB, Node ${process.version}`
}

/** Writes `results/<date>-<name>.json` and the same as a table in `.md`. */
export function writeResult(name: string, result: Result): void {
  const date = new Date().toISOString().slice(0, 10)
  const table = result.rows.map(
    (row) =>
      `| ${row.name} | ${row.numBlocks} | ${row.nanoseconds.toFixed(1)} | ${row.million.toFixed(1)} | ${row.heapBytes.toFixed(2)} |`,
  )
  const lines = [
    `# Block allocator and prefix cache, ${date}`,
    '',
    `${result.machine}. Page ${result.pageSize}, ${result.sequences} live sequences; median of 7 runs of 2 M operations.`,
    'The unit is a token for the appends and a block for the rest. Command: `tsx src/kv-cache.ts` in benchmarks.',
    '',
    '| operation | blocks | ns | M/s | heap bytes |',
    '| --- | --- | --- | --- | --- |',
    ...table,
    '',
  ]
  writeFileSync(`${folder}${date}-${name}.json`, `${JSON.stringify({ date, ...result }, null, 2)}\n`)
  writeFileSync(`${folder}${date}-${name}.md`, lines.join('\n'))
}
