export interface Series {
  readonly name: string
  readonly color: string
  readonly points: readonly (readonly [x: number, y: number])[]
}

/** A small line chart as SVG text that reads on light and dark ground. */
export function lineChart(options: {
  title: string
  x: string
  y: string
  series: readonly Series[]
  log?: boolean
}): string {
  const { title, x: xName, y: yName, series, log = false } = options
  const [width, height, left, right, top, bottom] = [560, 340, 64, 20, 58, 48]
  const xs = series.flatMap(({ points }) => points.map(([x]) => x))
  const ys = series.flatMap(({ points }) => points.map(([, y]) => y)).filter((y) => y > 0)
  const xMax = Math.max(...xs)
  const yMin = log ? 10 ** Math.floor(Math.log10(Math.min(...ys))) : 0
  const yMax = log ? 10 ** Math.ceil(Math.log10(Math.max(...ys))) : Math.max(...ys) * 1.08
  const px = (x: number) => left + (x / xMax) * (width - left - right)
  const share = (y: number) => (log ? Math.log(Math.max(y, yMin) / yMin) / Math.log(yMax / yMin) : y / yMax)
  const py = (y: number) => height - bottom - share(y) * (height - top - bottom)
  const ticks = log
    ? Array.from({ length: Math.round(Math.log10(yMax / yMin)) + 1 }, (_, i) => yMin * 10 ** i)
    : Array.from({ length: 5 }, (_, i) => (yMax * i) / 4)
  const text = (at: readonly [number, number], value: string, anchor = 'middle', extra = '') =>
    `<text x="${at[0].toFixed(1)}" y="${at[1].toFixed(1)}" text-anchor="${anchor}" ${extra}>${value}</text>`
  const label = (value: number) => (value >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(2))))
  const parts = [
    ...ticks.map(
      (y) =>
        `<path d="M${left} ${py(y).toFixed(1)}H${width - right}" stroke="#8886"/>${text([left - 6, py(y) + 4], label(y), 'end')}`,
    ),
    ...[0, 0.25, 0.5, 0.75, 1].map((part) => text([px(xMax * part), height - bottom + 16], label(xMax * part))),
    ...series.flatMap(({ name, color, points }, i) => [
      `<polyline fill="none" stroke="${color}" stroke-width="2" points="${points.map(([x, y]) => `${px(x).toFixed(1)},${py(y).toFixed(1)}`).join(' ')}"/>`,
      ...points.map(([x, y]) => `<circle cx="${px(x).toFixed(1)}" cy="${py(y).toFixed(1)}" r="3" fill="${color}"/>`),
      text([left + i * 165, 44], `● ${name}`, 'start', `style="fill:${color}"`),
    ]),
  ]
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="system-ui,sans-serif" font-size="12">
<title>${title}</title>
<style>text{fill:#555}@media(prefers-color-scheme:dark){text{fill:#bbb}}</style>
${text([left, 22], title, 'start', 'font-size="15" font-weight="600"')}
${parts.join('\n')}
${text([(left + width - right) / 2, height - 10], xName)}
${text([16, (top + height - bottom) / 2], yName, 'middle', `transform="rotate(-90 16 ${(top + height - bottom) / 2})"`)}
</svg>
`
}
