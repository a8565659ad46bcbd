import pc from 'picocolors'

const colors = pc.createColors(Boolean(process.stdout.isTTY) && !process.env.NO_COLOR)

export const bold = colors.bold
export const dim = colors.dim

/** A bar on standard error, drawn only on a terminal and wiped when done. */
export function progressBar(label: string, enabled = process.stderr.isTTY): (done: number, total: number) => void {
  if (!enabled) return () => {}
  let drawn = -1
  return (done, total) => {
    const width = 24
    const filled = Math.round((done / total) * width)
    if (done === total) process.stderr.write('\r\x1b[K')
    else if (filled !== drawn)
      process.stderr.write(`\r${label} ${'█'.repeat(filled)}${'░'.repeat(width - filled)} ${done}/${total}`)
    drawn = filled
  }
}

export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value, null, process.stdout.isTTY ? 2 : 0)}\n`)
}

/** 1536 → 1.5 KiB */
export function bytes(count: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let unit = 0
  let value = count
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit++
  }
  return `${value < 10 && unit > 0 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`
}
